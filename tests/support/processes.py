"""Other processes: plain ones, ones that hold a lock until they are killed, and how long a test waits for them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import gpucache

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 60.0
INTERPRETER = os.path.realpath(sys.executable)  # no shim, so that strace counts our calls only


def python_path(*directories: object) -> str:
    """A `PYTHONPATH` of directories, then those of this process; an empty one would be the current directory."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([*map(str, directories), *filter(None, own)])


def unmeasured() -> dict[str, str]:
    """The environment without coverage, which writes a file for each process, where another user may not."""
    return {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


def until(condition: Callable[[], object], otherwise: str = "it never came true") -> None:
    """Go on once the condition holds, after a minute at most; else fail, and say what is wrong then."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.02)  # a poll of other processes, not an order of events


BARE = {
    "PYTHONPATH": os.pathsep.join(
        [str(Path(gpucache.__file__).parents[1]), *filter(None, sys.path)]
    ),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "HOME": "/nowhere",
}

LOCK_HOLDER = """
import os, sys
from gpucache.disk.locks import locked
lock, how = sys.argv[1:]
forked, through = os.pipe()
with locked(lock, timeout_s=60):
    child = os.fork() if how else None
    if child == 0:
        os.write(through, b"!")
        if how == "unwinds":
            sys.exit()
        if how == "vanishes":
            os._exit(0)
        sys.stdin.read()
        os._exit(0)
    if child:
        os.read(forked, 1)  # until its fork is over, the child has the lock's descriptor too
        if how != "stays":
            os.waitpid(child, 0)
    print("held", flush=True)
    sys.stdin.read()
"""


KEY_HOLDER = """
import sys
from gpucache.store.key_lock import KeyLock
lock = KeyLock(sys.argv[1])
assert lock.try_acquire(sys._getframe(), "add_kernel")
print("held", flush=True)
for line in sys.stdin:
    lock.release()
    print("released", flush=True)
"""


@contextmanager
def running(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, once it said that it holds the lock; it is killed in the end."""
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()  # leaving closes its stdin, which ends its child


def lock_holder(lock: str, how: str = "") -> AbstractContextManager[subprocess.Popen[str]]:
    """Another process that holds the lock, having forked a child that ends ``how`` or stays."""
    return running(LOCK_HOLDER, lock, how)
