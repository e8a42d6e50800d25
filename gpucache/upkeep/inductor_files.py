"""The files of TorchInductor's in a root: found among all that is no entry, and removed one by one.

By their names alone they are told from what is no cache, which nobody but its owner may remove.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from gpucache.disk.locks import is_free
from gpucache.disk.within import Straight
from gpucache.layout.inductor import is_cache
from gpucache.layout.paths import tag_path
from gpucache.report.cache_report import CacheReport
from gpucache.store.removal import Freed, InUse

_LOCK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class InductorFile(NamedTuple):
    """A file of TorchInductor's in a root, as it was when it was found."""

    path: str
    size_bytes: int
    physical_bytes: int
    """0 where it has links elsewhere, so that its removal frees nothing."""
    mark: tuple[int, ...]
    """Device, inode, and times of access and modification (ns): they tell of a use since."""

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> InductorFile:
        """Describe a file by what `os.lstat` says of it now."""
        physical_bytes = found.st_size if found.st_nlink == 1 else 0
        mark = found.st_dev, found.st_ino, found.st_atime_ns, found.st_mtime_ns
        return cls(path, found.st_size, physical_bytes, mark)

    @property
    def used(self) -> float:
        """The newest access or change, in seconds since the epoch."""
        *_, accessed_ns, modified_ns = self.mark
        return max(accessed_ns, modified_ns) / 1e9


class Sorted(NamedTuple):
    """The files below a root beside entries and strays, by what is to become of them."""

    files: tuple[InductorFile, ...]
    """TorchInductor's, that nobody uses."""
    in_use: tuple[str, ...]
    """The paths of those that were used too recently, and of locks that are held."""
    left: tuple[str, ...]
    """The paths of what is no cache; of a directory without any cached file, its own path only."""


def sort_files(report: CacheReport, since: float) -> Sorted:
    """Walk a root, and sort every file beside entries and strays into: to be deleted, in use (since then), no cache.

    Follows no link.
    """
    return _Sorting(report, since).sort()


class _Sorting:
    """A walk over one root, and the files that it has sorted so far."""

    def __init__(self, report: CacheReport, since: float) -> None:
        self.root = report.root
        self.since = since
        others = [f"{self.root}/{name}" for name in ("fxgraph", "aotautograd", "gpucache")]
        self.is_shared = any(map(os.path.isdir, others))
        """Whether something else is Inductor's or gpucache's here."""
        ours = os.path.join(self.root, "gpucache")
        self.known = {ours, tag_path(self.root)}
        self.known |= {stray.path for stray in report.strays}
        for entry in report.entries:
            self.known |= {copy.path for copy in entry.copies}
        tritons = os.path.join(self.root, "triton")
        self.cached = {self.root, tritons}
        """The directories that are a cache's, or have something of one below."""
        self.cached |= {device.path for device in report.devices}
        self.outside: dict[str, list[str]] = {}
        """What is no cache, by the directory that it is in."""
        self.files: list[InductorFile] = []
        self.in_use: list[str] = []

    def sort(self) -> Sorted:
        directories = [self.root]
        for path in directories:  # which grows
            directories += self._directory(path)
        left: list[str] = []
        for path in reversed(directories):  # what is below a directory comes before it
            outside = self.outside[path]
            parent = os.path.dirname(path)
            if path in self.cached:
                left += outside
                self.cached.add(parent)
            elif outside:
                self.outside[parent].append(path)
        left.sort()
        return Sorted(tuple(self.files), tuple(self.in_use), tuple(left))

    def _directory(self, path: str) -> list[str]:
        """Sort the files in a directory, and list the directories in it."""
        outside = self.outside.setdefault(path, [])
        inner: list[str] = []
        try:
            with os.scandir(path) as items:
                for item in items:
                    if item.path in self.known:
                        self.cached.add(path)
                    elif item.is_dir(follow_symlinks=False):
                        inner.append(item.path)
                    elif self._is_cache(item):
                        self.cached.add(path)
                        self._add(item)
                    else:
                        outside.append(item.path)
        except OSError:  # gone, or not for us to look into
            if os.path.lexists(path):
                outside.append(path)
        return inner

    def _is_cache(self, item: os.DirEntry[str]) -> bool:
        """Whether a file is surely Inductor's, by its name. A directory named ``cache`` alone may be anybody's."""
        if not item.is_file(follow_symlinks=False):
            return False
        name = os.path.relpath(item.path, self.root)
        if not is_cache(name):
            return False
        return self.is_shared or not name.startswith("cache/")

    def _add(self, item: os.DirEntry[str]) -> None:
        try:
            found = item.stat(follow_symlinks=False)
        except OSError:
            return
        file = InductorFile.of(item.path, found)
        is_lock = file.path.endswith(".lock")
        is_held = is_lock and not is_free(file.path)
        if is_held or file.used >= self.since:
            self.in_use.append(file.path)
        else:
            self.files.append(file)


def remove_file(file: InductorFile, disk: Straight) -> Freed:
    """Remove one file, unless it was used since; a lock while it is held.

    Raises:
        InUse: it is as it was.
    """
    try:
        physical_bytes = disk.act(file.path, partial(_remove_unchanged, file))
    except BlockingIOError:
        raise InUse("it is locked") from None
    except OSError as error:
        if error.errno == errno.ENOENT:  # another process was faster
            return Freed()
        raise InUse(error.strerror or str(error)) from error
    return Freed(1, file.size_bytes, physical_bytes)


def _remove_unchanged(file: InductorFile, here: int, name: str) -> int:
    """Remove a file by its name in an open directory; the bytes that this frees.

    Raises:
        InUse: it was used since.
        OSError: it is locked, or gone, or may not be removed.
    """
    fd = None
    try:
        if name.endswith(".lock"):
            fd = os.open(name, _LOCK, dir_fd=here)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        now = InductorFile.of(file.path, found)
        is_file = stat.S_ISREG(found.st_mode)
        if not is_file or now.mark != file.mark:
            raise InUse("it was used or replaced meanwhile")
        os.unlink(name, dir_fd=here)
    finally:
        if fd is not None:
            os.close(fd)
    return now.physical_bytes


def remove_empty(root: str, directories: Iterable[str], disk: Straight) -> None:
    """Remove the directories that have become empty, and those above them below the root."""
    deepest_first = sorted(directories, key=len, reverse=True)
    for directory in deepest_first:
        with suppress(OSError):  # something else is in it
            while directory != root:
                disk.rmdir(directory)
                directory = os.path.dirname(directory)
