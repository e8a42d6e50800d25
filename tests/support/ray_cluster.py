"""A Ray of the test's own: one head node, which says that it has 8 CPUs, and lets in who has its token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from support.processes import PATIENCE_S

CPUS = 8
"""What the node says it has, whatever the machine has."""


@contextmanager
def ray_cluster(environ: Mapping[str, str], gpus: int = 0) -> Iterator[dict[str, str]]:
    """Start a Ray whose tasks have this environment, wait until it is ready, and stop it in the end.

    What it returns is the environment of a program that finds it. ``gpus`` is how many the node says it has.
    """
    directory = Path(
        tempfile.mkdtemp(prefix="gpucache-ray-", dir="/tmp")
    )  # sockets' paths are short
    started = {
        **environ,
        "RAY_AUTH_MODE": "token",  # Ray listens on every address
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(directory),
    }
    log = directory / "log"
    places = [f"--temp-dir={directory}", f"--num-gpus={gpus}"]
    with open(log, "wb") as file:
        head = subprocess.Popen(
            [*_RAY, "start", "--head", "--block", "--port=0", *_SMALL, *places],
            env=started,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield started | {"RAY_ADDRESS": _address(head, directory, log)}
    finally:
        _stop(head)
        shutil.rmtree(directory, ignore_errors=True)


_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_SMALL = (
    f"--num-cpus={CPUS}",
    "--include-dashboard=false",
    "--disable-usage-stats",
    "--object-store-memory=80000000",
)


def _address(head: subprocess.Popen[bytes], directory: Path, log: Path) -> str:
    """The address of the node, which Ray writes into a file once it can be asked."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(FileNotFoundError):
            said = (directory / "ray_current_cluster").read_text().strip()
            if said:
                return said
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)  # a poll of another process, not an order of events


def _stop(head: subprocess.Popen[bytes]) -> None:
    """Let Ray stop its processes, and kill what is then left of its session."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(PATIENCE_S)
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
