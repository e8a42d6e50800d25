"""What is in a cache, as one frozen value: `scan` looks once, and everything that shows or removes speaks in it.

Reads roots of ours and the directories of stock Triton 3.0 to 3.9. Writes nothing and follows no link.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gpucache.findings import Finding, repair_command
from gpucache.layout import inductor, paths
from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards, unlinked
from gpucache.report.entries import READ_BYTES, Gathered, is_tritons
from gpucache.report.entries import Copy as Copy
from gpucache.report.entries import Entry as Entry
from gpucache.report.entries import File as File
from gpucache.report.inodes import Inode, Inodes, Sum
from gpucache.report.strays import Stray, kind_of, of_root, stray
from gpucache.store import stats
from gpucache.store.manifest import CONDEMNED, MANIFEST, Facts, facts_of, read_manifest, single_key

Progress = Callable[[int, int], None]
"""Called now and then with how many directories have been looked at, and how many there are."""


@dataclass(frozen=True, slots=True)
class DeviceDirectory:
    """A directory that Triton caches in."""

    name: str
    """As in ``triton/<name>``; ``.`` where the root itself is one, ``triton`` where that is."""
    path: str
    counters: Mapping[str, float]
    """Hits, misses and seconds saved, of `gpucache.stats`; empty where nothing was counted. They are known by directory
    and not by entry: a counter in each would cost every hit a write."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one part of the root takes.

    Physical bytes add up to the whole's: each inode counts in the part where it was seen first. The store is looked at
    first, then the device directories in their order.
    """

    name: str
    files: int
    logical_bytes: int
    physical_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """A root as it was when looked at. What vanished meanwhile is left out."""

    root: str
    devices: tuple[DeviceDirectory, ...]
    entries: tuple[Entry, ...]
    strays: tuple[Stray, ...]
    usage: tuple[Usage, ...]
    """The store, each device directory, the rest of ours, and Inductor's buckets."""
    findings: tuple[Finding, ...]
    """What could not be read or understood."""


def scan(root: str, progress: Progress | None = None) -> CacheReport:
    """Look at everything below a root, once. Beside any process; asks locks whether they are free, and keeps none.

    What cannot be read becomes a finding, never an exception; a root that is not there is an empty report.
    """
    return _Scan(os.path.realpath(root), progress).report()


class _Scan:
    """One look: the store first, so that what the device directories share with it is known."""

    def __init__(self, root: str, progress: Progress | None) -> None:
        self.root = root
        own = dict.fromkeys((f"{root}/gpucache", paths.ours(root)), "gpucache")
        self.levels = {f"{root}/triton": "triton", **own, paths.ours(root, "store"): "store"}
        self.progress = progress
        self.done = self.total = 0
        self.entries: dict[str, Gathered] = {}
        self.manifests: dict[Inode, Gathered] = {}
        self.inodes = Inodes(self._unreadable)
        self.sums: dict[str, Sum] = {}
        self.strays: list[Stray] = []
        self.findings: list[Finding] = []

    def report(self) -> CacheReport:
        devices, store = device_directories(self.root), shards(self.root)
        if self.progress is not None:
            self.total = sum(map(_length, [*store, *(path for _, path in devices)]))
        for shard in store:
            self._directory(shard, None, self._sum("store"))
        for name, path in devices:
            self._directory(
                path, name, self._sum("triton" if name in (".", "triton") else f"triton/{name}")
            )
        self._rest(self.root, {*store, *(path for _, path in devices)})
        self.strays += of_root(self.root)
        counters = self._counters()
        return CacheReport(
            root=self.root,
            devices=tuple(
                DeviceDirectory(name, path, counters.get(os.path.basename(path), {}))
                for name, path in devices
            ),
            entries=tuple([gathered.entry() for gathered in self.entries.values()]),
            strays=tuple(self.strays),
            usage=tuple(
                Usage(one.name, one.files, one.logical, one.physical) for one in self.sums.values()
            ),
            findings=tuple(self.findings),
        )

    def _counters(self) -> Mapping[str, Mapping[str, float]]:
        try:
            return stats.totals(self.root) if unlinked(self.root, "stats") else {}
        except OSError:  # told by whoever counts its files
            return {}

    # ---- entries

    def _directory(self, path: str, name: str | None, total: Sum) -> None:
        """A shard of the store, or a device directory."""
        pattern, disk = (STORE_KEY if name is None else KEY), self.inodes.disk(path)
        for item in self.inodes.items(path):
            self._step()
            try:
                if pattern.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
                    self._keyed(item, name, disk, total)
                elif name not in (".", "triton"):  # there is more than Triton's there, for `_rest`
                    self._stray(item.path)
                    self._other(item, disk, total)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unreadable(item.path, error)

    def _keyed(
        self, item: os.DirEntry[str], name: str | None, disk: dict[int, Inode], total: Sum
    ) -> None:
        """A key directory: in the store, a view of it, or Triton's own."""
        files, new, directories = self.inodes.contents(item.path, disk, total)
        for inode in new:
            if inode.is_link:
                self._link(item.path)
        for directory in directories:
            self._stray(directory)
            self.inodes.tree(directory, disk, total)
        if CONDEMNED in files:
            self._add("half-removed", item.path)
            return
        if not files and not directories:
            self._add("empty", item.path)
        for temporary in list(filter(kind_of, files)):
            self._stray(f"{item.path}/{temporary}")
            gone = files.pop(temporary)
            new = [inode for inode in new if inode is not gone]
        others = [
            directory for directory in directories if kind_of(os.path.basename(directory)) is None
        ]
        if files and (MANIFEST in files or name is None or is_tritons(files, others)):
            self._copy(item, name, files, new)

    def _copy(
        self, item: os.DirEntry[str], name: str | None, files: dict[str, Inode], new: list[Inode]
    ) -> None:
        """Add a key directory to its entry: the one with the same manifest, which views share, or with the same key."""
        manifest, facts = files.get(MANIFEST), None
        if manifest is not None:
            mark = manifest.number, manifest.mtime_ns
        else:
            found = item.stat(follow_symlinks=False)
            mark = found.st_ino, found.st_mtime_ns
        gathered = self.manifests.get(manifest) if manifest is not None else None
        if gathered is None:
            facts = self._facts(item.path, manifest, stored=name is None)
            key = item.name
            if name is not None and facts is not None and facts.group is None:
                key = single_key(key, facts.kernel, facts.tag)
            gathered = self.entries.setdefault(key, Gathered(key))
            if manifest is not None:
                self.manifests[manifest] = gathered
        gathered.add(item.path, name, files, new, mark, facts)

    def _facts(self, path: str, manifest: Inode | None, stored: bool) -> Facts | None:
        """What an entry's manifest says.

        Raises:
            FileNotFoundError: the entry is being removed or replaced.
        """
        if manifest is None:
            if stored:
                self._without_manifest(path)
            return None
        found = read_manifest(path) if manifest.readable(READ_BYTES) else None
        facts = facts_of(found[0]) if found is not None else None
        if facts is not None and _sound(facts):
            return facts
        os.lstat(f"{path}/{MANIFEST}")
        self._finding(
            "manifest-torn", path, f"{MANIFEST} cannot be understood", repair_command(self.root)
        )
        return None

    def _without_manifest(self, path: str) -> None:
        for name in (MANIFEST, CONDEMNED):
            if os.path.isfile(f"{path}/{name}"):  # it was renamed while the directory was listed
                raise FileNotFoundError(path)
        os.lstat(path)
        self._finding(
            "manifest-missing",
            path,
            f"a stored entry without {MANIFEST}",
            repair_command(self.root),
        )

    # ---- everything else

    def _rest(self, path: str, known: Collection[str]) -> None:
        """What is in no shard and in no device directory, level by level; ``known`` are those."""
        for item in self.inodes.items(path):
            try:
                directory = item.is_dir(follow_symlinks=False)
                if directory and item.path in self.levels:
                    self._rest(item.path, known)
                elif item.path not in known and not (
                    path in known and directory and KEY.fullmatch(item.name)
                ):
                    if path in known:
                        self._stray(item.path)
                    self._other(
                        item, self.inodes.disk(item.path), self._sum(self._part(path, item))
                    )
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unreadable(item.path, error)

    def _part(self, path: str, item: os.DirEntry[str]) -> str:
        """The part of the root that an item in one of its levels counts to."""
        if path != self.root:
            own = item.name in ("quarantine", "tmp") and path == paths.ours(self.root)
            return item.name if own else self.levels[path]
        name = inductor.bucket(item.name) if item.is_dir(follow_symlinks=False) else "other"
        return f"./{name}" if name in ("store", "quarantine", "tmp") else name

    def _other(self, item: os.DirEntry[str], disk: dict[int, Inode], total: Sum) -> None:
        """A file or tree that is no entry's."""
        if item.is_dir(follow_symlinks=False):
            self.inodes.tree(item.path, disk, total, self._unfinished)
            return
        self.inodes.file(item, disk, total)
        if item.is_symlink():
            self._link(item.path)

    def _unfinished(self, path: str) -> None:
        if inductor.is_temporary(path[len(self.root) + 1 :]):
            self._add("torch-temporary", path)

    # ---- what was found

    def _sum(self, name: str) -> Sum:
        return self.sums.setdefault(name, Sum(name))

    def _stray(self, path: str) -> None:
        kind = kind_of(os.path.basename(path))
        if kind is not None:
            self._add(kind, path)

    def _add(self, kind: str, path: str) -> None:
        found = stray(kind, path)
        if found is not None:
            self.strays.append(found)

    def _finding(self, code: str, subject: str, fact: str, fix: str) -> None:
        self.findings.append(Finding(code, "warning", subject, fact, fix))

    def _link(self, path: str) -> None:
        self._finding("link", path, "a symbolic link in a cache is not followed", "remove it")

    def _unreadable(self, path: str, error: OSError) -> None:
        self._finding("unreadable", path, error.strerror or str(error), "look at it as its owner")

    def _step(self) -> None:
        self.done += 1
        if self.progress is not None and self.done % 64 == 0:
            self.progress(self.done, self.total)


def _sound(facts: Facts) -> bool:
    """Whether a manifest says what it is to say, in texts that can be shown."""
    optional = (facts.group, facts.target, facts.triton_version)
    texts: list[object] = [
        facts.kernel,
        facts.tag,
        *(text for text in optional if text is not None),
    ]
    return all(isinstance(text, str) and text.isprintable() for text in texts)


def _length(path: str) -> int:
    try:
        return len(os.listdir(path))
    except OSError:
        return 0
