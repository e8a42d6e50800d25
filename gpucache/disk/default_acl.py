"""The POSIX default ACL of a directory: which modes other programs' new files and directories in it get.

Where a directory has one, the kernel passes over the umask (acl(5)): what torch, stock Triton and other JITs make below
comes out as the ACL says, and a new directory takes the ACL on to what is made in it. The format is that of Linux 6.12
``include/uapi/linux/posix_acl_xattr.h``; the entries here are those of a plain mode, for owner, group and others.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress

from gpucache.disk import mounts

_NAME = "system.posix_acl_default"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_FORMAT = 2
_OWNER, _GROUP, _OTHERS = 0x01, 0x04, 0x20
_NOBODY_IN_PARTICULAR = 0xFFFFFFFF
_NO_ACLS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""How mounts say that they have no ACLs."""
_TRIAL = "tmp.gpucache-acl-"


def set_default_acl(directory: int, mode: int, tried: bool = False) -> bool:
    """Have what others make in an open directory get this mode (0770), less what they ask for; return whether it will.

    A file that a program makes with mode 0666 then has 0660, a directory made with 0777 has 0770, whatever the umask. A
    file that is made with 0600, as by `tempfile.mkstemp`, has 0600 all the same. Beside any process; what is in the
    directory already stays as it is.

    False where the mount has no ACLs, or keeps one and does not follow it, which is tried by making a directory; then
    there is none afterwards. ``tried`` says that this mount is known to follow them.

    Raises:
        OSError: this user does not own the directory, or the disk is read-only or full.
    """
    if not hasattr(os, "setxattr"):
        return False
    try:
        os.setxattr(directory, _NAME, _acl(mode))
    except OSError as error:
        if error.errno in _NO_ACLS:
            return False
        raise
    if tried or _is_inherited(directory, mode):
        return True
    remove_default_acl(directory)
    return False


def default_acl(directory: str | int) -> int | None:
    """The mode that a directory's default ACL gives, for owner, group and others; None where it has no plain one.

    One with entries for further users or groups is no plain one. None also where the directory cannot be asked.
    """
    if not hasattr(os, "getxattr"):
        return None
    try:
        data = os.getxattr(directory, _NAME)
    except OSError:
        return None
    return _mode(data)


def has_default_acl(directory: str | int) -> bool:
    """Whether new entries of a directory are open to the group's members whatever the umask of who makes them."""
    mode = default_acl(directory)
    return mode is not None and mode & stat.S_IRWXG == stat.S_IRWXG


def has_any_default_acl(directory: str | int) -> bool:
    """Whether a directory has a default ACL of any kind, by which new entries pass the umask over."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(directory, _NAME)
    except OSError:
        return False
    return True


def may_have_default_acl(directory: str) -> bool:
    """Whether the mount of a directory has ACLs, as far as that can be told without trying (`set_default_acl`).

    Of a file system that is a process (FUSE) only a directory that has one tells: `set_default_acl` has tried it.
    """
    if not hasattr(os, "getxattr"):
        return False
    try:
        os.getxattr(directory, _NAME)
    except OSError as error:
        kind = mounts.file_system(directory) or ""
        return error.errno == errno.ENODATA and not kind.startswith("fuse")
    return True


def remove_default_acl(directory: int) -> bool:
    """Let the umask count again in an open directory; return whether there was an ACL.

    Raises:
        OSError: as `set_default_acl`.
    """
    if not hasattr(os, "removexattr"):
        return False
    try:
        os.getxattr(directory, _NAME)  # ext4 removes without a word what is not there
        os.removexattr(directory, _NAME)
    except OSError as error:
        if error.errno not in (errno.ENODATA, *_NO_ACLS):
            raise
        return False
    return True


def _is_inherited(directory: int, mode: int) -> bool:
    """Whether a new directory in this one takes the ACL on, and its mode whatever the umask: as where ACLs count.

    The kernel takes the umask off before it asks FUSE, unless that wants otherwise: seen of bindfs, which keeps ACLs.
    """
    name = f"{_TRIAL}{os.getpid()}-{os.urandom(4).hex()}"
    # Of all threads, for the length of one call: what they make meanwhile is their user's.
    umask = os.umask(0o077)
    try:
        os.mkdir(name, mode, dir_fd=directory)
    finally:
        os.umask(umask)
    try:
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            is_open = os.fstat(made).st_mode & 0o777 == mode & 0o777
            return is_open and default_acl(made) == mode & 0o777
        finally:
            os.close(made)
    finally:
        with suppress(FileNotFoundError):  # another process swept the directory
            os.rmdir(name, dir_fd=directory)


def _acl(mode: int) -> bytes:
    data = _VERSION.pack(_FORMAT)
    for tag, shift in ((_OWNER, 6), (_GROUP, 3), (_OTHERS, 0)):
        data += _ENTRY.pack(tag, mode >> shift & 0o7, _NOBODY_IN_PARTICULAR)
    return data


def _mode(data: bytes) -> int | None:
    if data[: _VERSION.size] != _VERSION.pack(_FORMAT):
        return None
    entries = data[_VERSION.size :]
    if len(entries) != 3 * _ENTRY.size:
        return None
    allowed: dict[int, int] = {}
    for tag, permissions, _ in _ENTRY.iter_unpack(entries):
        allowed[tag] = permissions
    if allowed.keys() != {_OWNER, _GROUP, _OTHERS}:
        return None
    return allowed[_OWNER] << 6 | allowed[_GROUP] << 3 | allowed[_OTHERS]
