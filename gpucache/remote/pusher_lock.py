"""Which process of a node pushes: the one that holds a lock, and whether a rank is to start one.

The file lies beside the locks of keys, one for each user. A pusher removes it when it ends, so that the rank that makes
the file is the one that starts the next pusher, however many have just compiled something. A file that is there and not
locked is one whose pusher is about to come up, or, after some seconds, that of one that was killed.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress

from gpucache.disk.door import SAFELY
from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import give_up, is_free, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STARTING_S = 10.0
"""So long a pusher may take to come up before another one is started."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY


def lock_name() -> str:
    """The name of the lock of this user's pusher, in the directory of a root's locks."""
    return f"pusher-{os.geteuid()}"


def is_to_start(locks: str) -> bool:
    """Whether the caller is to start a pusher: none runs, and nobody has just started one.

    ``locks`` is the directory of the root's locks. Of any number that ask at once, one is told True; but where a pusher
    was killed, two may be, and one of their pushers ends at once.

    Raises:
        OSError: the disk refused.
    """
    path = f"{locks}/{lock_name()}"
    try:
        os.close(os.open(path, _NEW, 0o600))
        return True
    except FileExistsError:
        pass
    try:
        age_s = time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return False  # it ends at this moment, and looks at the outbox once more
    if 0 <= age_s < STARTING_S or not is_free(path):
        return False
    with suppress(FileNotFoundError):
        os.utime(path, follow_symlinks=False)
    return True


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
