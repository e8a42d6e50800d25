"""Give a root that is its owner's alone again the directories that other members have made in it for all.

A directory of devices, or a part of ``gpucache/v1``, is refused where another user owns it, unless the root is a
group's. So it comes into the quarantine, whole, with what that member's views or counters are, and an empty one of the
owner's takes its place. Views are made again from the store.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE, device_directories


def taken(root: str, uid: int, disk: Straight) -> list[str]:
    """The paths of the directories in a root, a real path, that another user than ``uid`` has made for all."""
    return [path for path in _for_all(root) if _is_anothers(path, uid, disk)]


def take_back(root: str, uid: int, disk: Straight) -> None:
    """Put other users' directories aside, and make the owner's own.

    Beside any process; killed at any instant, the same call goes on.

    Raises:
        OSError: one cannot be put aside, or made.
    """
    for path in taken(root, uid, disk):
        _put_aside(root, path, disk)
        make(path, disk)


def make(path: str, disk: Straight) -> None:
    """Make a directory, unless it is there.

    Raises:
        OSError: the disk refused, or a link is on the way.
    """
    with suppress(FileExistsError):
        disk.mkdir(path)


def make_parts(root: str, has_members: bool, disk: Straight) -> None:
    """Make all directories of gpucache's that are missing in a root, so that they are its owner's and no member's.

    ``has_members`` says that members have own directories there: the first one's torch would make the directory of
    these for itself alone.

    Raises:
        OSError: as `make`.
    """
    for path in paths.our_directories(root):
        make(path, disk)
    if has_members:
        make(paths.members_directory(root), disk)


def _for_all(root: str) -> Iterator[str]:
    outer = (paths.triton_directory(root), f"{root}/gpucache", paths.ours(root))
    for path in paths.our_directories(root):
        if path not in outer:
            yield path
    for _, path in device_directories(root):
        if os.path.dirname(path) == paths.triton_directory(root):
            yield path


def _is_anothers(path: str, uid: int, disk: Straight) -> bool:
    with suppress(OSError):
        found = disk.lstat(path)
        return stat.S_ISDIR(found.st_mode) and found.st_uid not in (uid, 0)
    return False


def _put_aside(root: str, path: str, disk: Straight) -> None:
    parent, name = os.path.split(path)
    where = paths.ours(root, "quarantine", f"{name}.{time.time_ns():x}.{os.getpid()}")
    try:
        if name != "quarantine":
            disk.rename(path, where)
            return
    except FileNotFoundError:
        if not disk.lexists(path):
            return  # removed meanwhile
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
    # It may not be moved to another directory where its owner alone may write in it, and be renamed all the same.
    disk.rename(path, f"{parent}/{ASIDE}{os.urandom(6).hex()}")
