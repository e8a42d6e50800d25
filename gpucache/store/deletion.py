"""Delete what nobody takes for an entry any more, by descriptors and through no link, and count what that frees."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.within import DEEPEST, Straight, open_directory


class Freed(NamedTuple):
    """How much a deletion removed."""

    files: int = 0
    logical_bytes: int = 0
    physical_bytes: int = 0
    """Without the files that have links elsewhere."""

    def plus(self, other: Freed) -> Freed:
        """What this deletion and another removed together."""
        return Freed(
            self.files + other.files,
            self.logical_bytes + other.logical_bytes,
            self.physical_bytes + other.physical_bytes,
        )

    def minus(self, other: Freed) -> Freed:
        """What this deletion removed beyond another, or beyond what was written for it."""
        return Freed(
            self.files - other.files,
            self.logical_bytes - other.logical_bytes,
            self.physical_bytes - other.physical_bytes,
        )


NOTHING = Freed()


def delete(path: str, disk: Straight) -> Freed:
    """Delete a file, or a directory with all that is in it; return what was freed. Links are deleted, not followed.

    Beside any other process that deletes the same: what is gone counts nothing. What may not be deleted stays, and so
    does what is behind a link.
    """
    return Deletion(disk).delete(path)


class _Remaining:
    """An inode of which a name was deleted: how large it is, and how many names it still has."""

    __slots__ = ("links", "size_bytes")

    def __init__(self, found: os.stat_result) -> None:
        self.size_bytes = found.st_size
        self.links = found.st_nlink


class Deletion:
    """Several deletions in one go; of an inode with several names only the first is asked for its size and links."""

    def __init__(self, disk: Straight) -> None:
        self._disk = disk
        self._known: dict[tuple[int, int], _Remaining] = {}
        self._freed = NOTHING

    def delete(self, path: str) -> Freed:
        """Delete a file or directory, as the function `delete`; return what this call freed."""
        self._freed = NOTHING
        with suppress(OSError):  # it is gone, or behind a link
            self._disk.act(path, self._delete)
        return self._freed

    def _delete(self, parent: int, name: str, depth: int = 0) -> None:
        """Delete a file or directory by its name in ``parent``, an open directory that is so deep in what goes."""
        try:
            fd = open_directory(parent, name)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                self._unlink(name, parent, None)
            elif error.errno == errno.EACCES:
                # An empty one goes all the same, as of a killed member of a group.
                with suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
            return
        try:
            self._empty(fd, depth + 1)
        finally:
            os.close(fd)
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)

    def _empty(self, fd: int, depth: int) -> None:
        """Delete all that is in an open directory, unless that is deeper than anything of a cache."""
        if depth > DEEPEST:
            return
        device = os.fstat(fd).st_dev
        with os.scandir(fd) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    self._delete(fd, item.name, depth)
                else:
                    self._unlink(item.name, fd, (device, item.inode()))

    def _unlink(self, name: str, parent: int, inode: tuple[int, int] | None) -> None:
        """Delete a file, and count it: its bytes are free once its last name is gone."""
        left = None
        if inode is not None:
            left = self._known.get(inode)
        try:
            if left is None:
                left = _Remaining(os.lstat(name, dir_fd=parent))
            os.unlink(name, dir_fd=parent)
        except OSError:
            return
        left.links -= 1
        if inode is not None:
            if left.links:
                self._known[inode] = left
            else:
                self._known.pop(inode, None)  # the number may be used again
        physical_bytes = 0 if left.links else left.size_bytes
        deleted = Freed(1, left.size_bytes, physical_bytes)
        self._freed = self._freed.plus(deleted)
