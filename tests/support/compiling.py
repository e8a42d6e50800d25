"""Processes that hold keys' locks as compiles do, and processes that wait for them; no kernel is compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gpucache.layout import paths
from support.processes import running

KEY = "A" * 51 + "Q"
OTHER = "B" * 51 + "Q"

_COMPILING = """
import sys
from gpucache.store.key_lock import KeyLock
path, what, device = sys.argv[1:]
lock = KeyLock(path)
assert lock.try_acquire(sys._getframe(), what, device)
print("held", flush=True)
sys.stdin.read()
"""
_WAITING = """
import sys, time
from gpucache.store.key_lock import KeyLock
KeyLock(sys.argv[1]).wait(1000, time.monotonic() + 1000)
"""


def lock_of(root: Path, key: str = KEY) -> Path:
    """The path of a key's lock, in a directory that is there."""
    path = Path(paths.ours(str(root), "locks", f"{key}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def compiling(
    root: Path, kernel: str = "matmul", device: str = "3", key: str = KEY
) -> AbstractContextManager[subprocess.Popen[str]]:
    """A process that compiles a kernel for a device directory, as far as others can see."""
    return running(_COMPILING, str(lock_of(root, key)), kernel, device)


@contextmanager
def waiters(root: Path, count: int, key: str = KEY) -> Iterator[None]:
    """So many processes that wait for a compile."""
    command = [sys.executable, "-c", _WAITING, str(lock_of(root, key))]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()
