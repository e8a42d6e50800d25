"""Try whether the mount of a root keeps modes, groups and default ACLs, before anything there is changed."""

from __future__ import annotations

import errno
import os
import stat

from gpucache.disk.default_acl import set_default_acl
from gpucache.disk.files import STAGED
from gpucache.disk.group_names import group_name
from gpucache.disk.refusal import refusal
from gpucache.disk.shared_modes import GROUP_ACL
from gpucache.disk.sharing import MODES
from gpucache.disk.within import Straight, open_directory
from gpucache.errors import SharingError
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing

_NO_MODES = (
    "the mount decides on modes (vfat, ntfs, CIFS, many FUSE mounts): mount it with the group and "
    "modes of its options (`gid=`, `umask=007`), or choose a root on a file system of Linux's own"
)


def tried(root: str, sharing: Sharing, gid: int | None) -> bool:
    """Make a directory in a root as the root's are to be; return whether it can have a default ACL.

    The directory is gone afterwards.

    Raises:
        SharingError: the mount keeps no such mode or group.
        ProvisionError: nothing can be made there, or a link is in the place of a directory.
    """
    staging = paths.ours(root, "tmp")
    with Straight() as disk:
        place = staging if disk.lexists(staging) else root
        try:
            with disk.directory(place) as here:
                return _tried_in(root, here, sharing, gid)
        except OSError as error:
            if isinstance(error, SharingError):
                raise
            raise refusal(place, error, "share") from error


def _tried_in(root: str, here: int, sharing: Sharing, gid: int | None) -> bool:
    """As `tried`, in an open directory."""
    name = f"{STAGED}{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(name, 0o700, dir_fd=here)
    try:
        fd = open_directory(here, name)
        try:
            _give_group(root, fd, gid)
            _give_mode(root, fd, MODES[sharing].directory)
            return sharing == "group" and set_default_acl(fd, GROUP_ACL)
        finally:
            os.close(fd)
    finally:
        os.rmdir(name, dir_fd=here)


def _give_group(root: str, fd: int, gid: int | None) -> None:
    if gid is None or gid == os.fstat(fd).st_gid:
        return
    try:
        os.fchown(fd, -1, gid)
        if os.fstat(fd).st_gid != gid:
            raise OSError(errno.EPERM, "it stays as it was, without an error")
    except OSError as error:
        if error.errno == errno.EINVAL:
            fact = f"{group_name(gid)} is no group in this container: its user namespace does not map it"
            hint = "map the group into the container (`--gidmap`, `subgid`), or name one that is (--group)"
        else:
            fact = f"its mount gives nothing to group {group_name(gid)} ({error.strerror})"
            hint = _NO_MODES
        raise SharingError(root, "no-groups", fact, hint) from error


def _give_mode(root: str, fd: int, mode: int) -> None:
    why = "it stays as it was, without an error"
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        why = error.strerror or str(error)
    kept = stat.S_IMODE(os.fstat(fd).st_mode)
    if kept != mode:
        fact = f"its mount keeps no mode {mode:04o} ({why}: {kept:04o})"
        raise SharingError(root, "no-modes", fact, _NO_MODES)
