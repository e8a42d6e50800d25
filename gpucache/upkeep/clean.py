"""Remove all that is cached in a root, and nothing that is not: the entries, what is left of others, Inductor's files.

Device directories, the record of the devices and the counters stay: they are no caches, and workers resolve by them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpucache.disk.locks import is_free
from gpucache.layout.inductor import is_cache
from gpucache.report.cache_report import CacheReport
from gpucache.store.recency import is_recent
from gpucache.store.removal import Freed, InUse
from gpucache.units import ago
from gpucache.upkeep.prune import PrunePlan, PruneResult, Skipped


class OtherFile(NamedTuple):
    """A file of TorchInductor's."""

    path: str
    size_bytes: int
    physical_bytes: int
    """0 where it has links elsewhere, so that its removal frees nothing."""
    mark: tuple[int, ...]
    """Device, inode, and times of access and modification (ns): they tell of a use since."""

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> OtherFile:
        """The file as it is now."""
        mark = found.st_dev, found.st_ino, found.st_atime_ns, found.st_mtime_ns
        return cls(path, found.st_size, found.st_size if found.st_nlink == 1 else 0, mark)

    @property
    def used(self) -> float:
        """Seconds since the epoch: the newest access or change."""
        return max(self.mark[2:]) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanPlan:
    """What is to go from a root, as a value: nothing happens before `execute`."""

    entries: PrunePlan
    files: tuple[OtherFile, ...]
    left: tuple[str, ...]
    """Paths below the root that are no cache, as far as their names tell, and stay; of a directory without any cached
    file, its own path only."""

    @property
    def physical_bytes(self) -> int:
        """What this is going to free."""
        return self.entries.physical_bytes + sum(file.physical_bytes for file in self.files)

    @property
    def logical_bytes(self) -> int:
        """Hard links counted each time."""
        return self.entries.logical_bytes + sum(file.size_bytes for file in self.files)

    def execute(self, progress: Callable[[int, int], None] | None = None) -> PruneResult:
        """Do it, as `PrunePlan.execute`; Inductor's files go one by one, each whole."""
        done = self.entries.execute(progress)
        freed, skipped = done.freed, list(done.skipped)
        for file in self.files:
            try:
                freed = freed.plus(_remove(file))
            except InUse as why:
                skipped.append(Skipped(file.path, str(why)))
        _remove_empty(self.entries.root, {os.path.dirname(file.path) for file in self.files})
        return replace(done, freed=freed, skipped=tuple(skipped))


def clean_plan(report: CacheReport, grace_s: float, now: float | None = None) -> CleanPlan:
    """Everything in a root as scanned, less what was used in the last ``grace_s`` seconds (-inf spares nothing)."""
    now = time.time() if now is None else now
    entries = sorted(report.entries, key=lambda entry: entry.used)
    sorting = _Sorting(report, now - grace_s)
    sorting.sort()
    in_use = [entry for entry in entries if is_recent(entry.used, now, grace_s)]
    kept = [Skipped(entry.key, f"used {ago(now - entry.used)}") for entry in in_use]
    alive = [
        Skipped(stray.path, "somebody may be at it") for stray in report.strays if not stray.dead
    ]
    return CleanPlan(
        entries=PrunePlan(
            root=report.root,
            remove=tuple(entry for entry in entries if not is_recent(entry.used, now, grace_s)),
            slim=(),
            strays=tuple(stray for stray in report.strays if stray.dead),
            kept=(*kept, *sorting.kept, *alive),
        ),
        files=tuple(sorting.files),
        left=tuple(sorted(sorting.left)),
    )


class _Sorting:
    """What is below a root beside entries and strays: files of Inductor's that go, those in use, and what is no cache.

    Follows no link.
    """

    def __init__(self, report: CacheReport, since: float) -> None:
        self.root, self.since = report.root, since
        self.shared = any(
            os.path.isdir(f"{self.root}/{name}") for name in ("fxgraph", "aotautograd", "gpucache")
        )
        self.known = {copy.path for entry in report.entries for copy in entry.copies}
        self.known |= {stray.path for stray in report.strays}
        self.known |= {os.path.join(self.root, "gpucache"), os.path.join(self.root, "CACHEDIR.TAG")}
        self.cached = {
            self.root,
            os.path.join(self.root, "triton"),
            *(device.path for device in report.devices),
        }
        """The directories that are a cache's, or have something of one below."""
        self.outside: dict[str, list[str]] = {}
        """What is no cache, by the directory that it is in."""
        self.files: list[OtherFile] = []
        self.kept: list[Skipped] = []
        self.left: list[str] = []

    def sort(self) -> None:
        """Look at everything; a directory that has nothing of a cache becomes one path."""
        directories = [self.root]
        for path in directories:  # which grows
            directories += self._directory(path)
        for path in reversed(directories):
            outside, parent = self.outside[path], os.path.dirname(path)
            if path in self.cached:
                self.left += outside
                self.cached.add(parent)
            elif outside:
                self.outside[parent].append(path)

    def _directory(self, path: str) -> list[str]:
        """Sort the files in a directory; the directories in it."""
        outside, inner = self.outside.setdefault(path, []), []
        try:
            with os.scandir(path) as items:
                for item in items:
                    if item.path in self.known:
                        self.cached.add(path)
                    elif item.is_dir(follow_symlinks=False):
                        inner.append(item.path)
                    elif item.is_file(follow_symlinks=False) and self._is_cache(item.path):
                        self.cached.add(path)
                        self._inductors(item)
                    else:
                        outside.append(item.path)
        except OSError:  # gone, or not for us to look into
            outside += [path] if os.path.lexists(path) else []
        return inner

    def _is_cache(self, path: str) -> bool:
        """A directory named ``cache`` may be anybody's, where nothing else is Inductor's or ours."""
        name = os.path.relpath(path, self.root)
        return is_cache(name) and (not name.startswith("cache/") or self.shared)

    def _inductors(self, item: os.DirEntry[str]) -> None:
        try:
            file = OtherFile.of(item.path, item.stat(follow_symlinks=False))
        except OSError:
            return
        if file.used >= self.since or (file.path.endswith(".lock") and not is_free(file.path)):
            self.kept.append(Skipped(file.path, "in use"))
        else:
            self.files.append(file)


def _remove(file: OtherFile) -> Freed:
    """Remove one file, unless it was used since; a lock while it is held.

    Raises:
        InUse: it is as it was.
    """
    fd = None
    try:
        if file.path.endswith(".lock"):
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.lstat(file.path)
        if not stat.S_ISREG(found.st_mode) or OtherFile.of(file.path, found).mark != file.mark:
            raise InUse("it was used or replaced meanwhile")
        os.unlink(file.path)
    except BlockingIOError:
        raise InUse("it is locked") from None
    except OSError as error:
        if error.errno == errno.ENOENT:  # another process was faster
            return Freed()
        raise InUse(error.strerror or str(error)) from error
    finally:
        if fd is not None:
            os.close(fd)
    return Freed(1, found.st_size, found.st_size if found.st_nlink == 1 else 0)


def _remove_empty(root: str, directories: Iterable[str]) -> None:
    """Remove the directories that have become empty, and those above them below the root."""
    for directory in sorted(directories, key=len, reverse=True):
        with suppress(OSError):  # something else is in it
            while directory != root:
                os.rmdir(directory)
                directory = os.path.dirname(directory)
