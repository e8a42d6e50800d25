"""`Inodes`: counts files by inode, so that a hard link that was seen before costs no system call and no bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple


class Inode:
    """A file as the file system knows it, whatever and however many its names are."""

    __slots__ = ("accessed", "found", "links", "mode", "mtime_ns", "number", "size_bytes")

    def __init__(self, found: os.stat_result) -> None:
        # The stat_result itself would be 20 objects more to keep.
        self.number = found.st_ino
        self.mode = found.st_mode
        self.links = found.st_nlink
        self.size_bytes = found.st_size
        self.accessed = found.st_atime
        self.mtime_ns = found.st_mtime_ns
        self.found = 0
        """How many of its names are known; the rest is elsewhere."""

    @property
    def modified(self) -> float:
        """When the content was changed last, in seconds since the epoch."""
        return self.mtime_ns / 1e9

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    def readable(self, most_bytes: int) -> bool:
        """Whether reading it waits for nobody, follows nothing and fits into memory."""
        return stat.S_ISREG(self.mode) and self.size_bytes <= most_bytes


Disk = dict[int, Inode]
"""The inodes of one file system that were seen so far, by number."""


class Sum:
    """How many files one part of a tree has, and their bytes; they are added up while the tree is walked."""

    __slots__ = ("files", "logical", "name", "physical")

    def __init__(self, name: str) -> None:
        self.name = name
        self.files = 0
        self.logical = 0
        self.physical = 0


class Contents(NamedTuple):
    """The files and the directories that are directly in a directory."""

    files: dict[str, Inode]
    new: list[Inode]
    """Those of the files that were seen nowhere before, each once."""
    directories: list[str]
    """Their paths."""


class Inodes:
    """The files of a tree, listed directory by directory. Follows no link.

    ``unreadable`` is told what cannot be listed; what vanishes meanwhile is passed over.
    """

    def __init__(self, unreadable: Callable[[str, OSError], None]) -> None:
        self._known: dict[int, Disk] = {}
        self._unreadable = unreadable

    def items(self, path: str) -> list[os.DirEntry[str]]:
        """List a directory. Where it cannot be listed, ``unreadable`` is told, and the list is empty."""
        try:
            with os.scandir(path) as items:
                return list(items)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._unreadable(path, error)
            return []

    def disk(self, path: str) -> Disk:
        """The known inodes of the file system that holds a path."""
        try:
            device = os.lstat(path).st_dev
        except OSError:
            return {}
        return self._known.setdefault(device, {})

    def contents(self, path: str, disk: Disk, total: Sum) -> Contents:
        """List a directory and count its files. The listing has the inodes' numbers: only new ones are asked for more.

        Raises:
            OSError: it cannot be listed, or is gone.
        """
        files: dict[str, Inode] = {}
        new: list[Inode] = []
        directories: list[str] = []
        with os.scandir(path) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    directories.append(item.path)
                    continue
                number = item.inode()
                inode = disk.get(number)
                if inode is None:
                    try:
                        found = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    inode = disk[number] = Inode(found)
                    new.append(inode)
                    total.physical += inode.size_bytes
                total.logical += inode.size_bytes
                files[item.name] = inode
        total.files += len(files)
        return Contents(files, new, directories)

    def file(self, item: os.DirEntry[str], disk: Disk, total: Sum) -> None:
        """Count one file of a directory.

        Raises:
            OSError: it cannot be looked at, or is gone.
        """
        number = item.inode()
        inode = disk.get(number)
        if inode is None:
            found = item.stat(follow_symlinks=False)
            inode = disk[number] = Inode(found)
            total.physical += inode.size_bytes
        total.logical += inode.size_bytes
        total.files += 1

    def tree(
        self,
        path: str,
        disk: Disk,
        total: Sum,
        seen: Callable[[str], object] | None = None,
    ) -> None:
        """Count a whole tree, however deep; ``seen`` is told the path of each file in it."""
        waiting = [path]
        while waiting:
            directory = waiting.pop()
            try:
                files, _, inner = self.contents(directory, disk, total)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unreadable(directory, error)
                continue
            if seen is not None:
                for name in files:
                    seen(f"{directory}/{name}")
            waiting += inner
