"""Whether a file system is fit for a cache: by which measures `provision` warns and `doctor` has findings."""

from __future__ import annotations

import errno
import os

from gpucache.disk import mounts
from gpucache.values import Value

_LITTLE_SPACE_BYTES = 256 * 2**20
_FEW_INODES = 1000


class Fitness(Value):
    """The properties of a file system that may hurt a cache on it."""

    read_only: bool = False
    """Hits go on, and nothing new is kept."""
    noexec: bool = False
    """Nothing can be loaded from there: neither Triton's launcher nor what torch compiles."""
    little_space_mib: int | None = None
    """The MiB left for this user; None where they are enough."""
    few_inodes: int | None = None
    """The inodes left for this user; None where they are enough, or the file system does not count them."""


def statvfs(path: str) -> os.statvfs_result | None:
    """What the file system of an existing path tells of itself; None where it tells nothing.

    The mount of an object store may have no such call, or tell of no blocks: its size is then unknown.

    Raises:
        OSError: the file system does not answer.
    """
    if not hasattr(os, "statvfs"):
        return None
    try:
        return os.statvfs(path)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP):
            raise
        return None


def fitness(path: str) -> Fitness:
    """How fit the file system of an existing path is; all is well where the operating system does not tell.

    Raises:
        OSError: the file system does not answer.
    """
    disk = statvfs(path)
    if disk is None:
        return Fitness()
    free_bytes = disk.f_bavail * disk.f_frsize
    is_full = disk.f_blocks > 0 and free_bytes < _LITTLE_SPACE_BYTES
    noexec_flag = getattr(os, "ST_NOEXEC", 0)
    lacks_inodes = disk.f_files > 0 and disk.f_favail < _FEW_INODES
    return Fitness(
        read_only=bool(disk.f_flag & os.ST_RDONLY),
        noexec=bool(disk.f_flag & noexec_flag),
        little_space_mib=free_bytes // 2**20 if is_full else None,
        few_inodes=disk.f_favail if lacks_inodes else None,
    )


def network_file_system(path: str) -> str | None:
    """The type of the network file system that an existing path is on (``nfs4``); None where it is a local one."""
    if mounts.is_local(path):
        return None
    return mounts.file_system(path)
