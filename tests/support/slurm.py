"""A Slurm of the test's own: munged, slurmctld and a slurmd for each node, on the loopback, without systemd or cgroups.

Debian's packages `munge`, `slurmctld`, `slurmd`, `slurm-client` (22.05). All of it runs as root, lies in one temporary
directory, and ends with the test, or with the process of the test.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from support.processes import PATIENCE_S

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "squeue")
CPUS = 8
"""What each node says it has, whatever the machine has."""

_CONFIGURATION = """
ClusterName=gpucache
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
_NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"

Nodes = Mapping[str, Sequence[str]]
"""The names of the nodes, each with the words that go before the command of its slurmd."""


class Job(NamedTuple):
    """A job that has ended, or a task of an array."""

    state: str
    """``COMPLETED`` if its script has ended with 0."""
    node: str
    out: Path
    """The file with what it said."""


class Slurm:
    """A Slurm that is ready for jobs; ``environ`` is that of a login node of this cluster."""

    def __init__(self, directory: Path) -> None:
        self.environ = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
        self._log = directory / "log"

    def start(self, *words: object, cwd: Path, **environ: str) -> subprocess.Popen[str]:
        """Start a command on the login node, with pipes."""
        return subprocess.Popen(
            [str(word) for word in words],
            env=self.environ | environ,
            cwd=cwd,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: object, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, such as `srun`, until it ends and all that has its stdio."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environ | environ,
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=240,
        )
        assert done.returncode == 0, (done.stdout, done.stderr, self.log())
        return done

    def ended(self, cwd: Path) -> dict[str, Job]:
        """Wait until no job is left; those submitted in a directory, by name: ``5``, or ``5_2`` of an array."""
        deadline = time.monotonic() + 4 * PATIENCE_S
        while self.run("squeue", "-h", cwd=cwd).stdout:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)  # a poll of other processes, not an order of events
        said = self.run("scontrol", "show", "job", "--oneliner", cwd=cwd).stdout
        jobs = {}
        for line in said.splitlines():
            fields = dict(re.findall(r"(\w+)=(\S*)", line))
            if fields["WorkDir"] != str(cwd):
                continue
            name = fields["JobId"]
            if "ArrayJobId" in fields:
                name = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}"
            jobs[name] = Job(fields["JobState"], fields["NodeList"], Path(fields["StdOut"]))
        return jobs

    def log(self) -> str:
        """The end of what the daemons have said."""
        return self._log.read_text(errors="replace")[-5000:]


def missing() -> list[str]:
    """The programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


@contextmanager
def slurm(nodes: Nodes) -> Iterator[Slurm]:
    """Start a Slurm with these nodes, wait until all are idle, and stop it in the end."""
    with ExitStack() as stack:
        # A socket's path has 108 letters at most.
        made = tempfile.mkdtemp(prefix="gpucache-slurm-", dir="/tmp")
        directory = Path(made)
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        started = Slurm(directory)
        _configure(directory, nodes)
        log = stack.enter_context(open(directory / "log", "ab"))

        def start(*words: object) -> subprocess.Popen[bytes]:
            # The daemon ends with this process, however that ends.
            command = ["setpriv", "--pdeathsig", "TERM", *(str(word) for word in words)]
            process = subprocess.Popen(
                command,
                env=started.environ | {"PATH": _path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(_stop, process)
            return process

        munged = start("munged", "--foreground", "--num-threads=2", *_munge_files(directory))
        _until_it_says("", munged, started, "munge", "-n", "-S", directory / "munge")
        controller = start("slurmctld", "-D")
        for name, become in nodes.items():
            start(*become, "slurmd", "-D", "-N", name)
        idle = "idle\n" * len(nodes)
        _until_it_says(idle, controller, started, "sinfo", "-h", "-N", "-o", "%T")
        yield started


def _munge_files(directory: Path) -> list[str]:
    names = {
        "key-file": "key",
        "socket": "munge",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "seed",
    }
    return ["--force", *(f"--{option}={directory / name}" for option, name in names.items())]


def _configure(directory: Path, nodes: Nodes) -> None:
    key = directory / "key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))
    controller_port, *ports = _free_ports(1 + len(nodes))
    lines = [
        _NODE.format(name=name, port=port, cpus=CPUS)
        for name, port in zip(nodes, ports, strict=True)
    ]
    for name in ("state", *nodes):
        (directory / name).mkdir()
    text = _CONFIGURATION.format(
        directory=directory, controller_port=controller_port, nodes="\n".join(lines)
    )
    (directory / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    """Ports that are free on the loopback now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until_it_says(
    answer: str, daemon: subprocess.Popen[bytes], started: Slurm, *words: object
) -> None:
    """Ask with a command, again and again, until it succeeds and says the answer (the empty one: whatever it says)."""
    question = [str(word) for word in words]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            question, env=started.environ, text=True, capture_output=True, timeout=PATIENCE_S
        )
        if done.returncode == 0 and (not answer or done.stdout == answer):
            return
        assert daemon.poll() is None, started.log()
        assert time.monotonic() < deadline, (question, done.stdout, done.stderr, started.log())
        time.sleep(0.02)  # a poll of another process, not an order of events


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
