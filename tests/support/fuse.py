"""Mount file systems that are processes, for the length of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.processes import PATIENCE_S

OBJECT_STORE = Path(__file__).with_name("object_store.py")


@contextmanager
def mounted(backing: Path, point: Path, refused: Mapping[str, str]) -> Iterator[Path]:
    """Show a directory as `object_store` does, without what is refused; both are made."""
    words = [f"{what}={code}" for what, code in refused.items()]
    command = [sys.executable, str(OBJECT_STORE), str(backing), str(point), *words]
    for directory in (backing, point):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _serving(command, point):
        yield point


@contextmanager
def same_directory(shown: Path, point: Path, *options: str) -> Iterator[Path]:
    """Show a directory once more, as another node sees it: with the locks of this mount alone (bindfs).

    ``options`` are more of bindfs's: ``chmod-ignore``.
    """
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = ",".join(("attr_timeout=0,entry_timeout=0", *options))
    command = ["bindfs", "-f", "-o", words, str(shown), str(point)]
    with _serving(command, point):
        yield point


@contextmanager
def _serving(command: list[str], point: Path) -> Iterator[None]:
    """Run a process that serves a mount, from when it is mounted until it is unmounted."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not os.path.ismount(point):
                assert server.poll() is None, server.communicate()
                assert time.monotonic() < deadline, "it is not mounted"
                time.sleep(0.01)
            yield
        finally:
            subprocess.run(["umount", "-l", point], check=False)
            server.kill()
