"""Whom the POSIX access-control list of a file or directory lets write, beside its owner and its group (acl(5)).

A mode does not show them: where there is a list, the group's bits of the mode are the most that any named user or group
may have. So only where the group may write can there be a named writer. The format is that of Linux 6.12
``include/uapi/linux/posix_acl_xattr.h``. Lists of other kinds, such as those of NFSv4, are not read.
"""

from __future__ import annotations

import errno
import os
import struct

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "system.posix_acl_access"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_FORMAT = 2
_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_WRITE = 0x02
_NONE = (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""How files say that they have no list, and mounts that they have none at all."""


class NamedWriters(Value):
    """Users and groups whom an access-control list names and lets write, by their numbers."""

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()


NOBODY = NamedWriters()


def named_writers(path: str | int, mode: int) -> NamedWriters:
    """Whom the list of a file or directory with this mode lets write; no link is followed at the end of a path.

    Costs one system call where the group may write, else none.

    Raises:
        OSError: the file system does not tell, or tells no list.
    """
    if not mode & 0o020 or not hasattr(os, "getxattr"):
        return NOBODY
    try:
        data = _read(path)
    except OSError as error:
        if error.errno in _NONE:
            return NOBODY
        raise
    entries = list(_entries(data))
    mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), 0o7)
    uids, gids = [], []
    for tag, allowed, number in entries:
        if not allowed & mask & _WRITE:
            continue
        if tag == _USER:
            uids.append(number)
        elif tag == _GROUP:
            gids.append(number)
    return NamedWriters(tuple(uids), tuple(gids))


def drop_list(directory: int) -> None:
    """Take the list from an open file or directory of this user's own, so that its mode alone says who may do what.

    Raises:
        OSError: another user's, or the disk is read-only.
    """
    if not hasattr(os, "removexattr"):
        return
    try:
        os.removexattr(directory, _NAME)
    except OSError as error:
        if error.errno not in _NONE:
            raise


def _read(path: str | int) -> bytes:
    if isinstance(path, int):
        return os.getxattr(path, _NAME)
    return os.getxattr(path, _NAME, follow_symlinks=False)


def _entries(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The tag, permissions and number of each entry.

    Raises:
        OSError: these bytes are no list of this format.
    """
    entries = data[_VERSION.size :]
    if data[: _VERSION.size] != _VERSION.pack(_FORMAT) or len(entries) % _ENTRY.size:
        raise OSError(errno.EINVAL, "not an access-control list that is known")
    return _ENTRY.iter_unpack(entries)
