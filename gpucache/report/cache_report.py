"""`CacheReport`: all that is in a root, as one frozen value, and `scan`, which makes it in one look.

Everything that shows or removes what is cached starts from a report. Read are roots of gpucache and the directories of
stock Triton 3.0 to 3.9. Nothing is written, and no link is followed.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from gpucache.disk.reading import listed
from gpucache.disk.root import check_there
from gpucache.findings import Finding
from gpucache.layout import inductor, paths
from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards
from gpucache.report.entries import Entry
from gpucache.report.inodes import Disk, Sum
from gpucache.report.key_directories import KeyDirectories
from gpucache.report.strays import Stray, of_root
from gpucache.store import stats
from gpucache.store.foreign import Foreign, foreign_directories, keys_in

Progress = Callable[[int, int], None]
"""Called now and then with how many directories have been looked at, and how many there are."""


@dataclass(frozen=True, slots=True)
class DeviceDirectory:
    """A directory that Triton caches in."""

    name: str
    """As in ``triton/<name>``; ``.`` where the root itself is one, ``triton`` where that is; a foreign one its path."""
    path: str
    counters: Mapping[str, float]
    """Hits, misses and seconds saved, of `gpucache stats`; empty where nothing was counted. They are known by directory
    and not by entry: a counter in each would cost every hit a write."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How many bytes one part of the root takes, and in how many files.

    Physical bytes add up to the whole's: each inode counts in the part where it was seen first. The store is looked at
    first, then the device directories in their order.
    """

    name: str
    files: int
    logical_bytes: int
    physical_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """All that is in a root, as it was during the scan. What vanished meanwhile is left out."""

    root: str
    devices: tuple[DeviceDirectory, ...]
    entries: tuple[Entry, ...]
    strays: tuple[Stray, ...]
    usage: tuple[Usage, ...]
    """The store, each device directory (of one outside the root the views of the store only), the rest of what is
    gpucache's, Inductor's buckets, and each other JIT cache as ``jit/<name>``."""
    findings: tuple[Finding, ...]
    """What could not be read or understood."""


def scan(
    root: str, progress: Progress | None = None, *, may_be_missing: bool = False
) -> CacheReport:
    """Look at everything below a root, once. Beside any process; asks locks whether they are free, and keeps none.

    What cannot be read below the root becomes a finding, never an exception. With ``may_be_missing`` a root that is not
    there is an empty report. Python's garbage collector is off meanwhile, in the whole process: nothing here makes a
    circle, and looking at a million new objects again and again took a quarter of the time at 50,000 entries.

    Raises:
        NoRootError: the root is not there, or no directory.
        ProvisionError: the operating system does not say whether the root is there.
    """
    if not (may_be_missing and not os.path.lexists(root)):
        check_there(root)
    with _garbage_collector_off():
        return _Scan(os.path.realpath(root), progress).report()


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Scan:
    """A scan of one root. The store is read first, so that what the device directories share with it is known."""

    def __init__(self, root: str, progress: Progress | None) -> None:
        self.root = root
        self.levels = _levels(root)
        self.members = paths.members_directory(root)
        self.progress = progress
        self.done = self.total = 0
        self.keyed = KeyDirectories(root)
        self.inodes = self.keyed.inodes
        self.sums: dict[str, Sum] = {}

    def report(self) -> CacheReport:
        devices = device_directories(self.root)
        store = shards(self.root)
        keyed = set(store)
        keyed.update(path for _, path in devices)
        if self.progress is not None:
            self.total = sum(map(_length, keyed))
        for shard in store:
            total = self._sum("store")
            self._directory(shard, None, total)
        for name, path in devices:
            total = self._sum(_part_of_device(name))
            self._directory(path, name, total)
        foreign = foreign_directories(self.root)
        for one in foreign:
            self._foreign(one)
        self._rest(self.root, keyed)
        strays = list(self.keyed.strays)
        strays.extend(of_root(self.root))
        parts = self.sums.values()
        return CacheReport(
            root=self.root,
            devices=self._devices([*devices, *((one.path, one.path) for one in foreign)]),
            entries=self.keyed.entries(),
            strays=tuple(strays),
            usage=tuple(map(_usage, parts)),
            findings=(*self.keyed.findings, *self.keyed.closed()),
        )

    def _devices(self, devices: Collection[tuple[str, str]]) -> tuple[DeviceDirectory, ...]:
        counters = stats.totals(self.root)
        found = []
        for name, path in devices:
            counted = counters.get(name, {})
            found.append(DeviceDirectory(name, path, counted))
        return tuple(found)

    # ---- directories of keys

    def _directory(self, path: str, name: str | None, total: Sum) -> None:
        """Look at a shard of the store (``name`` is None), or at a device directory."""
        pattern = STORE_KEY if name is None else KEY
        is_shared = name in (".", "triton")  # there is more than Triton's there, for `_rest`
        known = self.inodes.disk(path)
        for item in self.inodes.items(path):
            self._step()
            try:
                is_key = pattern.fullmatch(item.name)
                if is_key and item.is_dir(follow_symlinks=False):
                    self.keyed.read(item.path, name, known, total)
                elif not is_shared:
                    self.keyed.stray_name(item.path)
                    self._other(item, known, total)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.keyed.unreadable(item.path, error)

    def _foreign(self, foreign: Foreign) -> None:
        """Look at the views of the store in a device directory outside the root, and at nothing else there."""
        total = self._sum(foreign.path)
        known = self.inodes.disk(foreign.path)
        for key in keys_in(foreign.path):
            with suppress(OSError):  # gone, or not ours to look into
                self.keyed.read_foreign(foreign, key, known, total)

    # ---- everything else

    def _rest(self, path: str, keyed: Collection[str]) -> None:
        """Look at what is in no shard and in no device directory, level by level; ``keyed`` are those."""
        for item in self.inodes.items(path):
            try:
                directory = item.is_dir(follow_symlinks=False)
                if directory and item.path in self.levels:
                    self._rest(item.path, keyed)
                elif not self._was_looked_at(item, path, keyed):
                    if path in keyed:
                        self.keyed.stray_name(item.path)
                    part = self._part(path, item)
                    total = self._sum(part)
                    known = self.inodes.disk(item.path)
                    self._other(item, known, total)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.keyed.unreadable(item.path, error)

    def _was_looked_at(self, item: os.DirEntry[str], path: str, keyed: Collection[str]) -> bool:
        """Whether `_directory` has read an item in a level of the root (``path``): a directory of keys, or one key."""
        if item.path in keyed:
            return True
        if path not in keyed:
            return False
        is_key = KEY.fullmatch(item.name) is not None
        return is_key and item.is_dir(follow_symlinks=False)

    def _part(self, path: str, item: os.DirEntry[str]) -> str:
        """Name the row of `CacheReport.usage` that an item in one of the levels of the root counts to."""
        if path == self.root:
            return _bucket(item)
        if path == self.members:
            return f"members/{item.name}"
        if self.levels[path] == "jit" and item.is_dir(follow_symlinks=False):
            return f"jit/{item.name}"
        is_ours = path == paths.ours(self.root)
        if is_ours and item.name in ("quarantine", "tmp"):
            return item.name
        return self.levels[path]

    def _other(self, item: os.DirEntry[str], known: Disk, total: Sum) -> None:
        """Count a file, or all files of a tree, that belongs to no entry."""
        if item.is_dir(follow_symlinks=False):
            self.inodes.tree(item.path, known, total, self._unfinished)
            return
        self.inodes.file(item, known, total)
        if item.is_symlink() and not self._is_the_users(item.path):
            self.keyed.link(item.path)

    def _is_the_users(self, path: str) -> bool:
        """Whether a link directly in the root may be there for another reason than the cache: a root may be a home.

        And whether the link is one in a member's own directory, which leads to the device directories.
        """
        parent, name = os.path.split(path)
        if os.path.dirname(parent) == self.members:
            return True
        is_a_caches = name in ("triton", "gpucache") or KEY.fullmatch(name) is not None
        return parent == self.root and not is_a_caches

    def _unfinished(self, path: str) -> None:
        start = len(self.root) + 1
        if inductor.is_temporary(paths.below_base(path[start:])):
            self.keyed.stray("torch-temporary", path)

    # ---- what was found

    def _sum(self, name: str) -> Sum:
        if name not in self.sums:
            self.sums[name] = Sum(name)
        return self.sums[name]

    def _step(self) -> None:
        self.done += 1
        if self.progress is None:
            return
        if self.done % 64 == 0:
            self.progress(self.done, self.total)


def _levels(root: str) -> dict[str, str]:
    """Name the directories whose content counts to several rows, with the row that the rest of each counts to."""
    return {
        f"{root}/triton": "triton",
        paths.members_directory(root): "members",
        f"{root}/gpucache": "gpucache",
        paths.ours(root): "gpucache",
        paths.ours(root, "store"): "store",
        paths.jit_directory(root): "jit",
        **_levels_of_members(root),
    }


def _levels_of_members(root: str) -> dict[str, str]:
    """The same of members' own directories that this user may read: JIT caches count to the rows of the root's."""
    named = {}
    for path in listed(paths.members_directory(root)):
        if not os.path.islink(path) and os.access(path, os.R_OK | os.X_OK):
            named[path] = f"members/{os.path.basename(path)}"
            named[paths.jit_directory(path)] = "jit"
    return named


def _part_of_device(name: str) -> str:
    """Name the row of `CacheReport.usage` that a device directory counts to."""
    return "triton" if name in (".", "triton") else f"triton/{name}"


def _bucket(item: os.DirEntry[str]) -> str:
    """Name the row of `CacheReport.usage` that an item directly in the root counts to."""
    if not item.is_dir(follow_symlinks=False):
        return "other"
    name = inductor.bucket(item.name)
    if name in ("store", "quarantine", "tmp"):  # a row of gpucache's has that name
        return f"./{name}"
    return name


def _usage(part: Sum) -> Usage:
    return Usage(part.name, part.files, part.logical, part.physical)


def _length(path: str) -> int:
    try:
        return len(os.listdir(path))
    except OSError:
        return 0
