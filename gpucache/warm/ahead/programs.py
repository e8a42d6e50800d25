"""The programs of this node that one pool serves, and the pool itself: a file that both sides read and write locked.

A program registers before it starts, and starts a pool where none runs. The pool ends when all that have registered are
gone. Both happen under the lock of the file, so that a program either is seen by the pool that runs, or sees that none
runs any more. The file lies among the locks of the root (`disk.lock_place`) and goes with the pool. A pool that was
killed leaves the file to the next program, or to ``prune``, which takes it for a dead lock.

There is one file for each pid namespace: in another one a number means another process. Containers of one node that
share a root therefore have a pool each; what these compile twice is only what two compile in the same instant, since
workers take the locks of keys as all do.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress

from gpucache.disk.door import HOLDER_BYTES
from gpucache.disk.lock_place import LockPlace, open_lock_directory
from gpucache.disk.locks import AHEAD_LOCK, let_go, signature
from gpucache.disk.processes import is_running, pid_namespace
from gpucache.disk.sharing import open_or_new
from gpucache.values import Value
from gpucache.warm.ahead.short_digest import short_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from gpucache.disk.processes import Process

PATIENCE_S = 0.2
"""For so long a program waits for the file, which others hold for milliseconds; then it goes on without a pool."""
_LOOK_S = 0.002
_MOST_PROGRAMS = 256


class Programs(Value):
    """Who has registered in a file."""

    pool: Process | None = None
    """The pool that serves these programs."""
    programs: tuple[Process, ...] = ()

    def running(self) -> Programs:
        """Those that have not ended; a pool that has ended, or that was killed, is none."""
        programs = tuple(filter(is_running, self.programs))
        if self.pool is None or not is_running(self.pool):
            return Programs(None, programs)
        return Programs(self.pool, programs)


def programs_path(root: str, what: Iterable[str]) -> str:
    """The path of the file for what is to be compiled (files of recipes, targets), of this root and pid namespace.

    Raises:
        OSError, UnsafeDirectoryError: there can be no directory for locks (`LockPlace.directory`).
    """
    digest = short_digest([*what, str(pid_namespace()), str(os.geteuid())])
    return f"{LockPlace(root).directory()}/{AHEAD_LOCK}{digest}.lock"


class OpenPrograms:
    """The file while its lock is held."""

    def __init__(self, fd: int, here: int, name: str) -> None:
        self._fd, self._here, self._name = fd, here, name

    def read(self) -> Programs:
        """Who has registered; nobody where the file is empty, or was torn."""
        try:
            said = json.loads(os.pread(self._fd, _MOST_PROGRAMS * 64 + HOLDER_BYTES, 0))
            pool = said["pool"]
            programs = tuple(map(_process, said["programs"]))
            return Programs(None if pool is None else _process(pool), programs)
        except (ValueError, KeyError, TypeError, RecursionError):
            return Programs()

    def write(self, programs: Programs) -> None:
        """Write who has registered, and remove the file where nobody has.

        Raises:
            OSError: the disk refused.
        """
        if programs == Programs():
            self.remove()
            return
        # What `disk.locks.holder` reads comes first: it names the pool to `doctor`.
        said = json.loads(signature("compiling ahead of a program"))
        if programs.pool is not None:
            said["pid"], said["start"] = programs.pool
        said["pool"] = programs.pool
        said["programs"] = programs.programs[-_MOST_PROGRAMS:]
        data = json.dumps(said).encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))

    def remove(self) -> None:
        """Remove the file, whose lock is held: whoever has opened it meanwhile sees that, and makes it anew."""
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._here)


@contextmanager
def opened(path: str, patience_s: float = PATIENCE_S) -> Iterator[OpenPrograms]:
    """Hold the lock of the file, which is made if it is not there, for the length of a ``with`` block.

    Raises:
        OSError: the file cannot be made or locked, or others have held it all the time (`errno.EAGAIN`).
    """
    directory, _, name = path.rpartition("/")
    end = time.monotonic() + patience_s
    here = open_lock_directory(directory)
    try:
        fd = _locked(here, path, end)
        try:
            yield OpenPrograms(fd, here, name)
        finally:
            let_go(fd)
    finally:
        os.close(here)


def _locked(here: int, path: str, end: float) -> int:
    name = os.path.basename(path)
    while True:
        try:
            fd = open_or_new(name, os.O_RDWR, here)
        except OSError as error:
            error.filename = path
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 1:
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        # Another holds it, or a pool that ended has removed it while it was opened.
        os.close(fd)
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        time.sleep(_LOOK_S)


def _process(said: Any) -> Process:
    pid, start = said
    if type(pid) is not int or type(start) is not int or pid < 1:
        raise ValueError(said)
    return pid, start
