"""`EntryBuilder`: puts an entry together from the directories that have it, one directory after another."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from gpucache.kernels import metadata
from gpucache.kernels.group import AUTOTUNE, grouped_names
from gpucache.layout.keys import versions_of
from gpucache.report.entries import Copy, CopyKind, Entry, EntryKind, File
from gpucache.report.inodes import Inode
from gpucache.store.manifest import MANIFEST, Facts

READ_BYTES = 2**20
"""A file that is longer than this is no metadata, and is not read."""
# What Triton 3.0 to 3.9 puts into a key directory without a group: what a compile has made so far, and what it builds.
_STAGES = re.compile(r".+\.(?:source|ttir|ttgir|llir|ptx|cubin|amdgcn|hsaco|so|autotune\.json)")


class EntryBuilder:
    """Collects the copies of one entry while a root is being looked at."""

    __slots__ = ("copies", "facts", "files", "has_readers", "inodes", "key", "used")

    def __init__(self, key: str, has_readers: bool = False) -> None:
        self.key = key
        self.has_readers = has_readers
        """Whether others may read the root, whose uses only access times tell (`gpucache.store.readers`)."""
        self.facts: Facts | None = None
        self.files: Mapping[str, Inode] = {}
        self.inodes: list[Inode] = []
        self.copies: list[Copy] = []
        self.used = 0.0

    def add(
        self,
        path: str,
        directory: str | None,
        files: Mapping[str, Inode],
        new: Iterable[Inode],
        mark: tuple[int, int],
        facts: Facts | None,
    ) -> None:
        """Add one directory: its files, those of them that no directory had before, and what its manifest says."""
        logical = physical = 0
        for inode in files.values():
            inode.found += 1
            logical += inode.size_bytes
        for inode in new:
            physical += inode.size_bytes
            self.inodes.append(inode)
        kind = _copy_kind(directory, files)
        self.copies.append(Copy(path, kind, directory, logical, physical, mark))
        self.files = self.files or files
        if facts is not None:
            self.facts = facts
        elif self.facts is None:
            self.facts = _facts_of_stock(path, files)
        _, modified_ns = mark
        used = modified_ns / 1e9
        if kind == "stock":
            used = _last_touch(files)
        elif kind == "store" and self.has_readers:
            used = max(used, *(files[name].accessed for name in _compiled_files(files)))
        self.used = max(self.used, used)

    def entry(self) -> Entry:
        """Make the entry, once all its copies have been added."""
        assert self.facts is not None
        files = self.files
        compiled = _compiled_files(files)
        times_ns = [files[name].mtime_ns for name in compiled]
        logical_bytes = physical_bytes = held_bytes = 0
        for copy in self.copies:
            logical_bytes += copy.logical_bytes
            physical_bytes += copy.physical_bytes
        for inode in self.inodes:
            if inode.links > inode.found:
                held_bytes += inode.size_bytes
        listed = [File(name, inode.size_bytes) for name, inode in files.items()]
        return Entry(
            key=self.key,
            kind=_entry_kind(self.facts),
            kernel=self.facts.kernel.removesuffix(AUTOTUNE),
            target=self.facts.target,
            triton_version=self.facts.triton_version or _only_version(self.key),
            files=tuple(listed),
            copies=tuple(self.copies),
            logical_bytes=logical_bytes,
            physical_bytes=physical_bytes,
            held_bytes=held_bytes,
            created=max(times_ns) / 1e9,
            used=self.used,
        )


def is_tritons(names: Collection[str], directories: Collection[str]) -> bool:
    """Whether a directory that is named like a key surely is one of Triton's, by the files in it."""
    if directories:
        return False
    if grouped_names(names):
        return True
    has_stage = False
    for name in names:
        if _STAGES.fullmatch(name):
            has_stage = True
        elif not name.endswith(".json"):
            return False
    return has_stage


def touched(path: str) -> float:
    """When a stock directory was used last, as the disk says now; 0 where the directory is gone."""
    files: dict[str, Inode] = {}
    try:
        with os.scandir(path) as items:
            for item in items:
                if item.is_file():
                    found = item.stat(follow_symlinks=False)
                    files[item.name] = Inode(found)
    except OSError:
        return 0.0
    return _last_touch(files) if files else 0.0


def _copy_kind(directory: str | None, files: Mapping[str, Inode]) -> CopyKind:
    if directory is None:
        return "store"
    return "view" if MANIFEST in files else "stock"


def _only_version(key: str) -> str | None:
    """The version of Triton that a key tells; None where it tells none, or that it is one of several."""
    versions = versions_of(key)
    return versions[0] if len(versions) == 1 else None


def _compiled_files(files: Mapping[str, Inode]) -> Iterable[str]:
    """Name the files that were compiled: all but the manifest and the group, or these where there is nothing else."""
    compiled = [name for name in files if not name.startswith("__")]
    return compiled or files


def _last_touch(files: Mapping[str, Inode]) -> float:
    """When a stock directory was used last: the newest access or change of its files, in seconds since the epoch.

    The metadata file does not count, since `_facts_of_stock` reads it, and that must not look like a use.
    """
    metadata_files = grouped_names(files)
    times = [
        max(files[name].accessed, files[name].modified)
        for name in _compiled_files(files)
        if name not in metadata_files
    ]
    newest = max(times, default=0.0)
    if newest:
        return newest
    changes = [inode.modified for inode in files.values()]
    return max(changes)


def _facts_of_stock(path: str, files: Mapping[str, Inode]) -> Facts:
    """Read what Triton's own files say of an entry that has no manifest."""
    groups = grouped_names(files)
    if not groups:
        return Facts(min(_compiled_files(files)), None)
    group = groups[0]
    target = version = None
    found = files.get(group)
    if found is not None and found.readable(READ_BYTES):
        target, version = metadata.brief(f"{path}/{group}")
    kernel = group.removesuffix(".json")
    return Facts(kernel, group, target, version)


def _entry_kind(facts: Facts) -> EntryKind:
    if facts.group is not None:
        return "kernel"
    if facts.kernel.endswith(".so"):
        return "library"
    return "autotune" if facts.kernel.endswith(AUTOTUNE) else "file"
