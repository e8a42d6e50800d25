"""Give a root that is a group's no more the directories and files that other members have made in it.

A directory of devices, or a part of ``gpucache/v1``, is refused where another user owns it, unless the root is a
group's. So it comes into the quarantine, whole, with what that member's views or counters are, and an empty one of the
owner's takes its place. Views are made again from the store. Records and settings are copied.

In a root that others may read, whoever made a directory or a file can reach it and write it, and the root's owner and
all readers would execute that. So there what another member has made comes into the quarantine wherever others get to.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

from gpucache.disk.door import RECORD_BYTES, SAFELY, open_regular, read_some
from gpucache.disk.files import STAGED
from gpucache.disk.shared_modes import Inside, Wanted, is_published, is_reached
from gpucache.disk.walking import Seen, walk
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE, KEY, STORE_KEY, device_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing

_STORE = paths.ours("", "store").strip("/")
_RECORDS = paths.ours("", "devices").strip("/")
_FILES = (os.path.basename(paths.tag_path("")), paths.SETTINGS)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY


def taken(root: str, uid: int, disk: Straight, sharing: Sharing) -> list[str]:
    """The paths of what another user than ``uid`` has made in a root, a real path, and what cannot stay there so.

    ``sharing`` is with whom the root comes to be shared: nobody, or all who may read.
    """
    found = [path for path in _for_all(root) if _is_anothers(path, uid, disk)]
    others = _Others(root, uid, sharing)
    walk(root, disk, others)
    return list(dict.fromkeys([*found, *others.paths]))


def take_back(root: str, uid: int, disk: Straight, sharing: Sharing) -> None:
    """Put other users' directories and files aside, make the owner's own directories, and copy records and settings.

    Beside any process; killed at any instant, the same call goes on.

    Raises:
        OSError: one cannot be put aside, or made.
    """
    for_all = list(_for_all(root))
    for path in taken(root, uid, disk, sharing):
        below = os.path.relpath(path, root)
        if _is_small_file(below) and _is_copied(root, path, disk, sharing):
            continue
        aside = _put_aside(root, path, disk)
        if path in for_all:
            make(path, disk)
        elif aside is not None and os.path.dirname(below) == _STORE:
            disk.close()  # which holds the other directory at this path
            make(path, disk)
            _bring_back(root, aside, path, uid, disk)


class _Others(Inside):
    """Finds what others have made that cannot stay: in a root that all may read, whatever they get to.

    In a private one what is closed to its owner, who could keep nothing in its place.
    """

    def __init__(self, root: str, uid: int, sharing: Sharing) -> None:
        super().__init__(root)
        self._uid = uid
        self._is_read = sharing == "read"
        self.paths: dict[str, None] = {}

    def see(self, seen: Seen) -> bool:
        """As `walking.Walker.see`."""
        if not self.has(seen):
            return False
        is_anothers = seen.found.st_uid not in (self._uid, 0)
        if is_anothers and self._is_in_the_way(seen):
            if not seen.name.startswith(ASIDE):  # which nobody looks into, and all sweep
                self.paths[f"{self.root}/{_whole(seen.path)}"] = None
            return False
        return is_published(seen.path)

    def _is_in_the_way(self, seen: Seen) -> bool:
        """Whether another's directory or file cannot stay."""
        if self._is_read:
            return is_reached(seen.path)
        return _is_small_file(seen.path) or _is_closed(seen)

    def enter(self, seen: Seen, fd: int) -> None:
        """As `walking.Walker.enter`."""

    def fail(self, path: str, error: OSError) -> None:
        """As `walking.Walker.fail`: what is closed to the root's owner is another's, and was seen."""


def _is_closed(seen: Seen) -> bool:
    """Whether a directory is one that this user cannot use, as who is not in its group any more."""
    if not seen.is_directory:
        return False
    allowed = os.R_OK | os.W_OK | os.X_OK
    return not os.access(seen.name, allowed, dir_fd=seen.here, effective_ids=True)


def _whole(path: str) -> str:
    """The directory of an entry or a view that a file is in, as that is one with all its files; else the path."""
    parent = os.path.dirname(path)
    name = os.path.basename(parent)
    return parent if KEY.fullmatch(name) or STORE_KEY.fullmatch(name) else path


def _is_small_file(path: str) -> bool:
    """Whether a path below the root is that of settings, of the root's tag, or of a host's record."""
    return path in _FILES or os.path.dirname(path) == _RECORDS


def _is_copied(root: str, path: str, disk: Straight, sharing: Sharing) -> bool:
    """Put a copy of the owner's in the place of another's file; return whether that was done."""
    name = f"{STAGED}{os.getpid()}-{os.urandom(6).hex()}"

    def placed(here: int, last: str) -> bool:
        fd, found = open_regular(last, here=here)
        with open(fd, "rb") as file:
            data = read_some(file, RECORD_BYTES + 1)
        if len(data) > RECORD_BYTES:
            return False
        mode = Wanted(sharing).mode(os.path.relpath(path, root), found) & 0o666
        with disk.directory(paths.ours(root, "tmp")) as staging:
            with open(os.open(name, _NEW, 0o600, dir_fd=staging), "wb") as made:
                made.write(data)
                os.fchmod(made.fileno(), mode)
            os.rename(name, last, src_dir_fd=staging, dst_dir_fd=here)
        return True

    try:
        return disk.act(path, placed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return False  # no file, or one that is closed to the root's owner


def _bring_back(root: str, aside: str, path: str, uid: int, disk: Straight) -> None:
    """Move the entries that are wholly the owner's from another's directory back into the store."""
    names: list[str] = []
    with suppress(OSError):  # closed to the root's owner, who is in that group no more
        names = disk.listdir(aside)
    for name in names:
        entry = f"{path}/{name}"
        if not _is_wholly(f"{aside}/{name}", uid, disk):
            continue
        with suppress(OSError):  # it stays in the quarantine
            disk.rename(f"{aside}/{name}", entry)
            if not _is_wholly(entry, uid, disk):  # replaced meanwhile by who has the directory open
                _put_aside(root, entry, disk)


def _is_wholly(path: str, uid: int, disk: Straight) -> bool:
    """Whether a directory and all in it is one user's."""
    with suppress(OSError):
        found = [disk.lstat(path)]
        found += [disk.lstat(f"{path}/{name}") for name in disk.listdir(path)]
        return {one.st_uid for one in found} == {uid}
    return False


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


def _put_aside(root: str, path: str, disk: Straight) -> str | None:
    """Move something into the quarantine, or to another name; its new path, or None if it was gone."""
    parent, name = os.path.split(path)
    where = paths.ours(root, "quarantine", f"{name}.{time.time_ns():x}.{os.getpid()}")
    try:
        if name != "quarantine":
            disk.rename(path, where)
            return where
    except FileNotFoundError:
        if not disk.lexists(path):
            return None  # removed meanwhile
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
    # It may not be moved to another directory where its owner alone may write in it, and be renamed all the same.
    where = f"{parent}/{ASIDE}{os.urandom(6).hex()}"
    disk.rename(path, where)
    return where
