"""What the mount that holds a directory can do: tried there, since the name of its type does not tell, and kept.

An object store that is mounted has files and names, and often nothing else. Of four things that gpucache does, such a
mount may refuse each, or say that it did what it did not do. Whoever has a second way tries the first one and asks
`is_refusal`; the answers that are kept here are for people, and for those who must choose before they try.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress

from gpucache.disk import mounts
from gpucache.disk.door import DIRECTORY, read_limited
from gpucache.disk.files import STAGED, make_below_root, remove_tree, write_whole
from gpucache.disk.locks import let_go
from gpucache.disk.node import node_id
from gpucache.errors import GpuCacheError
from gpucache.layout import paths
from gpucache.values import Value, as_dict

MOST_BYTES = 4096
"""No file with an answer is longer."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Refused = Literal["no-directory-rename", "no-hard-links", "no-set-times", "no-flock"]

_VERSION = 1
_KEPT_S = 90 * 86400.0
_LONG_AGO = 1_000_000_000
"""A time, in seconds since the epoch, that no new file has."""
_OTHERWISE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ESTALE,
)
"""What is no matter of the way: the disk is full or read-only, or what was named is not there."""


def is_refusal(error: OSError) -> bool:
    """Whether a mount may refuse one way of doing something so, and yet do the same in another way.

    File systems disagree in how they say so. To rename a directory, mountpoint-s3 answers EPERM (`mountpoint-s3-fs`
    ``fs/error.rs``, August 2026), gcsfuse EMFILE or ENOTSUP (``internal/fs/fs.go``, August 2026), overlayfs EXDEV,
    others ENOSYS, EINVAL or EIO; a hard link gets EPERM, ENOTSUP (s3fs), ENOSYS or EMLINK. So all counts but a short
    list: a full or read-only disk refuses the second way as well, and what is gone is gone.
    """
    return error.errno not in _OTHERWISE


class Capabilities(Value, kw_only=True):
    """What processes of this node can do on one mount. Nothing here tells what other nodes see of it."""

    renames_directories: bool
    """Whether a directory that is not empty can be renamed, from one directory to another."""
    hard_links: bool
    """Whether a file can have two names."""
    sets_times: bool
    """Whether the modification time of a file can be set, and is then what was set."""
    flocks: bool
    """Whether ``flock`` works between two openings of one file on this node. Across nodes it may not, all the same."""

    def refused(self) -> dict[Refused, str]:
        """What the mount refuses, and for each what is done instead, as the second half of a sentence."""
        said: dict[Refused, str] = {}
        if not self.renames_directories:
            said["no-directory-rename"] = (
                "its mount cannot rename a directory: entries are published file by file, the manifest last"
            )
        if not self.hard_links:
            said["no-hard-links"] = (
                "its mount makes no hard links: each device directory has copies, which take their bytes again"
            )
        if not self.sets_times:
            said["no-set-times"] = (
                "its mount sets no times: a use is stamped by writing the manifest anew, every five minutes at most"
            )
        if not self.flocks:
            said["no-flock"] = (
                "files cannot be locked on its mount: locks are kept on this node, and other nodes do not see them"
            )
        return said


# ---- trying


def probe(directory: str) -> Capabilities:
    """Try what the mount of an existing directory can do, in a new directory below it, which is gone afterwards.

    Beside any process. If this process is killed, `files.sweep_old` knows what is left by its name.

    Raises:
        OSError: nothing can be made in the directory.
    """
    # Where it is known what the mount can do, nothing is tried.
    from gpucache.disk.sharing import modes_in, new_aside

    place = new_aside(directory, modes_in(directory), STAGED)
    try:
        file = f"{place}/file"
        _write(file)
        return Capabilities(
            hard_links=_links(file, f"{place}/link"),
            sets_times=_sets_times(file),
            flocks=_flocks(file),
            renames_directories=_renames(place),
        )
    finally:
        remove_tree(place)


def _write(path: str) -> None:
    with open(path, "xb") as file:
        file.write(b"gpucache")


def _links(source: str, target: str) -> bool:
    try:
        os.link(source, target)
        return os.path.samefile(source, target)
    except OSError:
        return False


def _sets_times(path: str) -> bool:
    try:
        os.utime(path, (_LONG_AGO, _LONG_AGO))
        return int(os.stat(path).st_mtime) == _LONG_AGO
    except OSError:
        return False


def _flocks(path: str) -> bool:
    """Whether a lock can be had, and keeps a second opening of the file from having the lock too."""
    first = second = -1
    try:
        first = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_kept_out(second)
    except OSError:
        return False
    finally:
        for fd in (first, second):
            if fd >= 0:
                let_go(fd)


def _is_kept_out(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _renames(place: str) -> bool:
    """Whether a directory with a file in it can be renamed to a name in another directory."""
    try:
        from gpucache.disk.sharing import modes_in, set_directory_mode

        for name in ("from", "from/entry", "to"):
            os.mkdir(f"{place}/{name}", 0o700)
            set_directory_mode(f"{place}/{name}", modes_in(place))
        _write(f"{place}/from/entry/file")
        os.rename(f"{place}/from/entry", f"{place}/to/entry")
        return os.path.exists(f"{place}/to/entry/file")
    except OSError:
        return False


# ---- keeping


def known(root: str) -> Capabilities | None:
    """What was found on this node of the mount that holds the root; None where nobody has tried since it was mounted.

    Never raises; makes nothing.
    """
    try:
        said = json.loads(read_limited(_path(root), MOST_BYTES))
        if said.pop("version") != _VERSION or said.pop("mount") != _mount(root):
            return None
        said.pop("host")
        found = Capabilities(**said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    answers = as_dict(found).values()
    return found if all(type(answer) is bool for answer in answers) else None


def may_link(root: str, first: str, second: str) -> bool:
    """Whether files in two existing directories can be hard links of one another, as far as that is known.

    What was tried counts (`known`), on the mount of the root; else the name of the file system's type.
    """
    point = mounts.point(first)
    if point != mounts.point(second):
        return False
    found = known(root)
    if found is not None and mounts.point(root) == point:
        return found.hard_links
    return mounts.links(first)


def learn(root: str, again: bool = False) -> Capabilities | None:
    """What the mount of a provisioned root can do: as `known`, else tried now, and kept for all processes of this node.

    ``again`` tries whatever is known. None where nothing can be made there: on a read-only or full disk, or where this
    user may not write.
    """
    found = None if again else known(root)
    if found is not None:
        return found
    staging = paths.ours(root, "tmp")
    try:
        found = probe(staging)
        where = {"version": _VERSION, "mount": _mount(root), "host": paths.host_name()}
        make_below_root(paths.ours(root, "mounts"))
        write_whole(_path(root), json.dumps(where | as_dict(found)).encode(), staging)
        _forget_old(paths.ours(root, "mounts"))
    except (OSError, GpuCacheError):
        pass  # found, perhaps, and not kept
    return found


def _path(root: str) -> str:
    return paths.ours(root, "mounts", f"{node_id()}.json")


def _mount(root: str) -> list[int]:
    """What tells the mount of a root from one that has taken its place: the device, and the inode of the root there."""
    found = os.stat(root)
    return [found.st_dev, found.st_ino]


def _forget_old(directory: str) -> None:
    """Remove what nodes found that were started again since, or are gone: each start leaves a file.

    Nothing is removed behind a link in the place of the directory.
    """
    here = os.open(directory, DIRECTORY)
    try:
        for name in os.listdir(here):
            with suppress(OSError):
                age_s = time.time() - os.stat(name, dir_fd=here, follow_symlinks=False).st_mtime
                if age_s > _KEPT_S and name.endswith(".json"):
                    os.unlink(name, dir_fd=here)
    finally:
        os.close(here)
