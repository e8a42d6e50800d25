"""Machines of a fleet, for tests: each with four GPUs, and with its own boot id, host name, /dev/shm and root.

They share the network of this machine and its file system, in which a test says what each may know of the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gpucache.disk.node import BOOT_ID
from support.corpus_runs import SUPPORT, Launched, launched
from support.processes import PATIENCE_S
from support.ranks import PYTHON

RANKS = 4
CORPUS = SUPPORT / "run_corpus.py"

_BECOME = f"""
set -e
mount --bind "$1" {BOOT_ID}
hostname "$2"
mount -t tmpfs none /dev/shm
echo there
exec cat
"""
_IN_DIRECTORY = 'cd "$0" && exec "$@"'


class Ran(NamedTuple):
    """A rank that has ended well."""

    said: str
    told: str
    """What it has written on stderr."""


class Machine:
    """A machine named ``name``, until `end`; all that is started on it is one node to gpucache."""

    def __init__(self, directory: Path, name: str, number: int) -> None:
        """``directory`` is made, and has the machine's root and whatever it is told to keep there."""
        directory.mkdir(parents=True)
        self.directory, self.name = directory, name
        self.root = directory / "root"
        boot_id = directory / "boot-id"
        boot_id.write_text(f"0badf1ee-0000-4000-8000-{number:012}\n")
        become = ("unshare", "--mount", "--uts", "sh", "-c", _BECOME, "sh", boot_id, name)
        self._living = subprocess.Popen(
            [str(word) for word in become],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._living.stdout is not None
        assert self._living.stdout.readline() == "there\n"
        self._namespace = _mounts_of(self._living.pid)
        self.environ = {
            **os.environ,
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_FAKE_DEVICES": f"{RANKS}xH100:9.0",
            "GPUCACHE_LOG": "warning",
        }
        """That of a login shell on the machine; a test may add to it."""

    def start(self, *words: object, **environ: str) -> subprocess.Popen[str]:
        """Start a command on the machine, in its directory."""
        enter = ("nsenter", "--target", self._living.pid, "--mount", "--uts", "sh", "-c")
        return subprocess.Popen(
            [str(word) for word in (*enter, _IN_DIRECTORY, self.directory, *words)],
            env=self.environ | environ,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: object, **environ: str) -> Ran:
        """Run a command on the machine, which ends well."""
        return _ended(self.start(*words, **environ))

    def gpucache(self, *words: object, **environ: str) -> Ran:
        """Run ``gpucache`` on the machine, which ends well."""
        return self.run(sys.executable, "-m", "gpucache", *words, **environ)

    def json(self, *words: object, **environ: str) -> dict[str, object]:
        """What ``gpucache … --json`` says."""
        said: dict[str, object] = json.loads(self.gpucache(*words, "--json", **environ).said)
        return said

    def each_rank(self, *words: object, **environ: str) -> list[Ran]:
        """What a launcher does with a command: one process for each GPU, all at once."""
        ranks = {"LOCAL_WORLD_SIZE": str(RANKS)} | environ
        started = [self.start(*words, **ranks, LOCAL_RANK=str(number)) for number in range(RANKS)]
        return [_ended(process) for process in started]

    def launch(self, *cases: str, target: str = "sm_90", **environ: str) -> list[Launched]:
        """Launch the kernels of `corpus`, or of the named cases, in each rank, under ``gpucache run``."""
        run = (sys.executable, "-m", "gpucache", "run", "--")
        ran = self.each_rank(*run, PYTHON, CORPUS, target, *cases, **environ)
        return [launched(one.said) for one in ran]

    def launch_stock(self, device: int, *cases: str, target: str = "sm_90") -> Launched:
        """The same in one process of stock Triton, which reads and writes a device directory."""
        directory = {"TRITON_CACHE_DIR": f"{self.root}/triton/{device}"}
        return launched(self.run(PYTHON, CORPUS, target, *cases, **directory).said)

    def stored(self) -> set[str]:
        """The keys in the machine's store."""
        return {path.name for path in self.root.glob("gpucache/v1/store/*/*")}

    def processes(self) -> dict[int, str]:
        """The processes of the machine by number, each with its command; but the one that keeps the machine."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                number = int(process.name)
                if number != self._living.pid and _mounts_of(number) == self._namespace:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[number] = command.strip()
        return found

    def end(self) -> None:
        """End the machine, and each process on it."""
        for number in self.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._living.communicate()


def _mounts_of(process: int) -> str:
    """The name of the namespace of the mounts that a process sees."""
    return os.readlink(f"/proc/{process}/ns/mnt")


def _ended(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=4 * PATIENCE_S)
    assert process.returncode == 0, (process.args, err)
    return Ran(out, err)


@contextmanager
def machines(directory: Path, *names: str) -> Iterator[list[Machine]]:
    """Machines with these names, which live below a directory and end with the context."""
    there: list[Machine] = []
    try:
        for number, name in enumerate(names):
            there.append(Machine(directory / name, name, number))
        yield there
    finally:
        for machine in there:
            machine.end()


def compiled(ranks: Sequence[Launched]) -> list[str]:
    """The keys that ranks have compiled; one that two have compiled is there twice."""
    return [key for rank in ranks for key in rank.compiled]


def failures(ranks: Sequence[Launched]) -> list[Mapping[str, str]]:
    """How launches have failed."""
    return [rank.failed for rank in ranks if rank.failed]
