"""Which process of a node pushes: the one that holds a lock, and whether a rank is to start one.

The file lies beside the locks of keys, one for each user. A pusher removes it when it ends, so that the rank that makes
the file is the one that starts the next pusher, however many have just compiled something. A file that is there and not
locked is one whose pusher is about to come up, or, after some seconds, that of one that was killed.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager

from gpucache.disk.door import SAFELY, open_regular
from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import REMOTE_FILES, give_up, is_free, take
from gpucache.disk.sharing import new_file
from gpucache.remote.breaker import Breaker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STARTING_S = 10.0
"""So long a pusher may take to come up before another one is started."""
_WRITING_S = 0.5


def lock_name() -> str:
    """The name of the lock of this user's pusher, in the directory of a root's locks."""
    return f"pusher-{os.geteuid()}"


def push_breaker(locks: str, url: str) -> Breaker:
    """What this node knows of writing to a remote: apart from reading, which others may who may not write.

    ``locks`` is the directory of the root's locks, ``url`` the remote's as the environment has it.
    """
    known = f"{os.geteuid()}\0{url}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(known).hexdigest()[:16]
    return Breaker(f"{locks}/{REMOTE_FILES}{digest}.push")


def is_to_start(locks: str) -> bool:
    """Whether the caller is to start a pusher: none runs, and nobody has just started one.

    ``locks`` is the directory of the root's locks. Of any number that ask at once, one is told True; but where a pusher
    was killed, two may be, and one of their pushers ends at once.

    Raises:
        OSError: the disk refused.
    """
    path = f"{locks}/{lock_name()}"
    try:
        fd = new_file(path, os.O_WRONLY)
    except FileExistsError:
        if _age_s(path) < STARTING_S or not is_free(path):
            return False
        try:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | SAFELY)
        except FileNotFoundError:
            return False  # it ends at this moment
    try:
        os.write(fd, f"{time.monotonic():.3f}".encode())
    finally:
        os.close(fd)
    return True


def _age_s(path: str) -> float:
    """How long ago a pusher was started, by the clock that all processes of a node share; 0 where it has just ended.

    An empty file is that of a pusher which was killed, unless it was made just now and is about to be written.
    """
    try:
        fd, found = open_regular(path)
    except FileNotFoundError:
        return 0.0  # it looks at the outbox once more
    try:
        age_s = time.monotonic() - float(os.read(fd, 32))
    except ValueError:
        is_new = abs(time.time() - found.st_mtime) < _WRITING_S
        return 0.0 if is_new else STARTING_S
    finally:
        os.close(fd)
    return STARTING_S if age_s < -1 else age_s  # of another boot, or rounded


@contextmanager
def held(locks: str) -> Iterator[bool]:
    """Hold the lock; yields whether this process does, and the file goes at the end. Nobody waits.

    Raises:
        OSError: the disk refused.
    """
    here = open_lock_directory(locks)
    try:
        fd = take(here, lock_name())
        try:
            yield fd is not None
        finally:
            if fd is not None:
                give_up(fd, here, lock_name())
    finally:
        os.close(here)
