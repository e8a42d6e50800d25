"""Bring a finished directory to its place, so that readers find a whole entry there or none: two ways.

The first is one rename. Where a directory that is not empty cannot be renamed (mounts of object stores, an image's
layer), the second is a removal the other way round: the new directory is *condemned* from the beginning, by a file of
the name `CONDEMNED`, so that nobody takes it for an entry or for what stock Triton left; then the files are renamed to
it one by one, the manifest last, and that file goes.

What a killed maker leaves is half removed to everybody else: `prune` deletes it, and the next maker under the same lock
replaces it at once. The file says who makes the directory: a maker of another node or pod, whose locks cannot be seen,
and one without the key's lock are given two minutes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from contextlib import suppress

from gpucache.disk import sharing
from gpucache.disk.capabilities import is_refusal
from gpucache.disk.door import open_regular, opener
from gpucache.disk.files import remove_tree
from gpucache.disk.sharing import PRIVATE, Modes, modes_for, new_directory, new_file, set_mode
from gpucache.kernels.group import GROUP
from gpucache.store.condemned import maker, reprieve, signature
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    Published,
    read_manifest,
    write_manifest,
)
from gpucache.store.stock import BUSY_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PERMISSIONS = 0o777
"""Without the bits by which a program runs with its owner's rights."""
_PATIENCE_S = 10.0
_LOOK_S = 0.02
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def put(made: str, target: str, locked: bool) -> bool:
    """Bring a directory to its place unless something is there; return whether it is there now.

    ``made`` has all files of an entry or view, with its manifest, or those of stock Triton's without one; it is gone
    afterwards, or half emptied. ``locked`` says that the caller holds the key's lock. Beside any readers and writers;
    killed at any instant, ``target`` is whole, or no entry.

    Raises:
        OSError: the disk refused both ways; nothing is at ``target``, or what was there.
    """
    try:
        os.rename(made, target)
        return True
    except OSError as error:
        if error.errno in _OCCUPIED and os.path.lexists(target):
            return False
        if not is_refusal(error):
            raise
    return _put_file_by_file(made, target, locked)


def is_being_made(target: str, locked: bool) -> bool:
    """Whether another process may be bringing files to a directory, one by one, at this moment.

    ``locked`` says that the caller holds the key's lock, so that a maker of this node that had the lock is dead.
    """
    who = _maker(target)
    if who is None:
        return False
    if locked and who in (signature(True), b""):
        return False  # or killed before the file was written
    return youngest_s(target) < BUSY_S


def wait_until_made(target: str) -> None:
    """Wait while a process that is not seen from here brings a directory its files one by one: ten seconds at most."""
    end = time.monotonic() + _PATIENCE_S
    while is_being_made(target, locked=False) and time.monotonic() < end:
        time.sleep(_LOOK_S)


def is_half_made(target: str) -> bool:
    """Whether a directory is one to which files are brought one by one, by a process that lives or is dead."""
    return _maker(target) is not None


def youngest_s(directory: str) -> float:
    """How many seconds ago the newest file of a directory was written; infinity where there is none, or it is gone."""
    newest = 0.0
    try:
        with os.scandir(directory) as items:
            for item in items:
                found = item.stat(follow_symlinks=False)
                newest = max(newest, found.st_mtime)
    except OSError:
        return float("inf")
    return time.time() - newest if newest else float("inf")


# ---- file by file


def _put_file_by_file(made: str, target: str, locked: bool) -> bool:
    if not _claimed(target, locked):
        return False
    try:
        for name in _in_order(os.listdir(made)):
            os.replace(f"{made}/{name}", f"{target}/{name}")
        if os.path.lexists(f"{made}/{MANIFEST}"):
            renew_times(made, target)
            os.replace(f"{made}/{MANIFEST}", f"{target}/{MANIFEST}")
    except BaseException:
        remove_tree(target)
        raise
    reprieve(target)
    return True


def _in_order(names: list[str]) -> list[str]:
    """The names of files but for the manifest; a group last, so that stock Triton finds all that it names."""
    others = [name for name in names if name != MANIFEST]
    return sorted(others, key=lambda name: (name.startswith(GROUP), name))


def _claimed(target: str, locked: bool) -> bool:
    """Make a directory that is condemned from the beginning; False where another process has made one."""
    try:
        new_directory(target, modes_for(target))
    except FileExistsError:
        # Under the lock an empty one may be had: its maker was killed before he could say who he was.
        if not locked or not _is_empty(target):
            return False
    try:
        fd = new_file(f"{target}/{CONDEMNED}", os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as file:
        file.write(signature(locked))
    return True


def _is_empty(path: str) -> bool:
    try:
        return not os.listdir(path)
    except NotADirectoryError:
        return False


def _maker(target: str) -> bytes | None:
    """What the maker of a directory has written; None for one that is not being made, or is made."""
    is_made = os.path.lexists(f"{target}/{MANIFEST}")
    return None if is_made else maker(target)


def renew_times(made: str, target: str) -> bool:
    """Write the manifest in ``made`` anew where the mount has given the files, which are in ``target``, other times.

    Returns whether that was so.

    Raises:
        OSError: the disk refused, or a file is not there.
    """
    read = read_manifest(made)
    if read is None:
        return False
    manifest, _ = read
    placed = {}
    for name, published in manifest.files.items():
        found = os.stat(f"{target}/{name}")
        placed[name] = Published(found.st_size, found.st_mtime_ns, published.sha256)
    if placed == manifest.files:
        return False
    used_ns = os.stat(f"{made}/{MANIFEST}").st_mtime_ns
    os.unlink(f"{made}/{MANIFEST}")  # it may be the store's own, under another name
    write_manifest(made, manifest._replace(listed=placed))
    set_use(f"{made}/{MANIFEST}", used_ns)
    return True


# ---- files


def set_use(path: str, used_ns: int) -> None:
    """Stamp a manifest with the time of the last use, unless the mount cannot set times: then the entry looks new.

    ``used_ns`` is in nanoseconds since the epoch.

    Raises:
        OSError: the disk refused otherwise.
    """
    try:
        os.utime(path, ns=(used_ns, used_ns))
    except PermissionError:
        # Of another member's file the time of now alone can be set: the entry looks newer than it is, and stays longer.
        with suppress(OSError):
            os.utime(path)
    except OSError as error:
        if not is_refusal(error):
            raise


def settle(paths: Iterable[str], modes: Modes, directory: str) -> None:
    """Give files of this user's that lie below a directory, where they were staged, the modes of where they go.

    What lies elsewhere, as what stock Triton has left in a directory of the user's, stays what it is.

    Raises:
        OSError: the disk refused.
    """
    if modes == PRIVATE:
        return
    for path in paths:
        if not path.startswith(f"{directory}/"):
            continue
        with suppress(FileNotFoundError):
            fd, _ = open_regular(path)
            try:
                set_mode(fd, modes.file)
            finally:
                os.close(fd)


def _is_for(source: str, target: str, modes: Modes) -> bool:
    """Whether a file has the modes and, where a group shares the root, the group with which it may be linked there."""
    if modes == PRIVATE:
        return True
    found = os.lstat(source)
    if stat.S_IMODE(found.st_mode) & _PERMISSIONS != modes.file:
        return False
    return modes != sharing.GROUP or found.st_gid == os.stat(os.path.dirname(target)).st_gid


def link_or_copy(source: str, target: str, modes: Modes = PRIVATE) -> bool:
    """Give a file another name, or copy the file where it cannot have one; return whether it was linked.

    In a root that is shared (``modes``) a file that has not its modes is copied: what is linked keeps its own, and its
    group, so that others could not use the file; and to change them would change the user's own file elsewhere.

    A copy has the time and the permissions of its source where the mount can set them. What root copies for another
    user is that user's word: no link is followed to a file that only root may read, and no copy runs with root's rights
    because its source has the bit that says so (set-user-ID).

    Raises:
        OSError: the disk refused both, or the source is no regular file.
    """
    try:
        if _is_for(source, target, modes):
            os.link(source, target, follow_symlinks=False)
            return True
    except OSError as error:
        if not is_refusal(error) or error.errno == errno.EEXIST:
            raise
    with open(source, "rb", opener=opener) as old, open(target, "xb") as new:
        found = os.fstat(old.fileno())
        shutil.copyfileobj(old, new)
        with suppress(OSError):
            mode = stat.S_IMODE(found.st_mode) & _PERMISSIONS
            os.fchmod(new.fileno(), mode if modes == PRIVATE else modes.file)
    with suppress(OSError):
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    return False


def hand_over(here: int, names: Iterable[str], owner: os.stat_result) -> None:
    """Give an open new directory, and the files in it that this process has made (``names``), to another's owner.

    Does nothing unless root acts for another user, who could neither read nor remove what root has made: whoever
    replaces something of a user's calls this with the `os.stat` of what was there. A file that has another name, or
    is not root's, is no file that was made here, and stays what it is. What the disk refuses stays root's.
    """
    root = os.geteuid()
    if root != 0 or owner.st_uid == root or os.fstat(here).st_uid != root:
        return
    for name in names:
        with suppress(OSError):
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_uid == root and found.st_nlink == 1:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=here, follow_symlinks=False)
    with suppress(OSError):  # the last: from here on the owner may do anything in the directory
        os.fchown(here, owner.st_uid, owner.st_gid)
