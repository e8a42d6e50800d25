"""Whether a disk has room for the entries of a pack, asked before any of them is written."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from gpucache.archive.statement import ArchivedEntry
from gpucache.disk.fitness import statvfs
from gpucache.errors import ProvisionError
from gpucache.units import size

_BLOCK_BYTES = 4096
"""What a file takes more than its bytes, at most, on most file systems; and what a directory takes."""


def check(root: str, entries: Iterable[ArchivedEntry]) -> None:
    """Refuse entries for which the file system of a root has too little space, or too few inodes.

    What others write meanwhile is not foreseen. A file system that does not tell is taken for large enough.

    Raises:
        ProvisionError: there is less than they take; the hint says how much of what is missing.
        OSError: the file system does not answer.
    """
    disk = statvfs(root)
    if disk is None or not disk.f_blocks:
        return
    needed_bytes = files = 0
    for entry in entries:
        made = len(entry.members) + 2  # its directory and its manifest
        files += made
        needed_bytes += entry.size_bytes + _BLOCK_BYTES * made
    free_bytes = disk.f_bavail * disk.f_frsize
    missing = None
    if needed_bytes > free_bytes:
        missing = f"the entries take {size(needed_bytes)}, and {size(free_bytes)} are free"
    elif disk.f_files and files > disk.f_favail:
        missing = f"the entries take {files} inodes, and {disk.f_favail} are free"
    if missing is not None:
        hint = (
            f"{missing}: make room (`gpucache prune`), take a part (--arch), or choose another root"
        )
        raise ProvisionError(root, errno.ENOSPC, hint, "write")
