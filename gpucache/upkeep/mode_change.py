"""Give one directory or file of a root its mode and group, by a descriptor of what was looked at and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from gpucache.disk.door import SAFELY
from gpucache.disk.shared_modes import Wanted
from gpucache.disk.walking import Seen

_BY_PATH = getattr(os, "O_PATH", 0) | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC


def change(seen: Seen, wanted: Wanted, uid: int, names: int = 1) -> bool:
    """Give a directory, or a file with so many names, what is wanted, if a user owns it; return whether that was done.

    What is at the name by now is opened without following a link, and is then looked at: it must be a directory, or a
    regular file that has no name beside those that are known, since one outside the root would be changed as well. So a
    link to another file does no harm, nor a hard link, however late anyone puts it there.

    The group comes before the mode: the kernel takes rights from a file that changes hands. From what was a mode for
    the owner alone, nobody gains anything in between.

    Raises:
        OSError: the disk refused, or the mode is not what was set.
    """
    with _opened(seen) as thing:
        found = os.stat(thing)
        if found.st_uid != uid or not _is_same(seen, found, names):
            return False
        mode = wanted.mode(seen.path, found)
        if wanted.gid not in (None, found.st_gid):
            os.chown(thing, -1, wanted.gid)
        os.chmod(thing, mode)
        if not wanted.fits(seen.path, os.stat(thing)):
            raise OSError(errno.EPERM, "mode and group do not stay as they were set", seen.path)
    return True


def _is_same(seen: Seen, found: os.stat_result, names: int) -> bool:
    if stat.S_ISDIR(found.st_mode):
        return seen.is_directory
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= names


@contextmanager
def _opened(seen: Seen) -> Iterator[int | str]:
    """What `os.chmod` takes for the thing itself: a descriptor, or a path by which the kernel finds that again.

    The second is for what its owner may not open, and is why the modes are to be mended.
    """
    try:
        fd = os.open(seen.name, os.O_RDONLY | SAFELY, dir_fd=seen.here)
        thing: int | str = fd
    except PermissionError:
        fd = os.open(seen.name, _BY_PATH, dir_fd=seen.here)
        thing = f"/proc/self/fd/{fd}"
    try:
        yield thing
    finally:
        os.close(fd)
