"""`EntryBuilder`: puts an entry together from the directories that have it, one directory after another."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from gpucache.kernels import metadata
from gpucache.kernels.group import AUTOTUNE, GROUP
from gpucache.report.entries import Copy, CopyKind, Entry, EntryKind, File
from gpucache.report.inodes import Inode
from gpucache.store.manifest import MANIFEST, Facts

READ_BYTES = 2**20
"""A file that is longer than this is no metadata, and is not read."""
# What Triton 3.0 to 3.9 puts into a key directory without a group: what a compile has made so far, and what it builds.
_STAGES = re.compile(r".+\.(?:source|ttir|ttgir|llir|ptx|cubin|amdgcn|hsaco|so|autotune\.json)")


class EntryBuilder:
    """Collects the copies of one entry while a root is being looked at."""

    __slots__ = ("copies", "facts", "files", "inodes", "key", "used")

    def __init__(self, key: str) -> None:
        self.key = key
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
        used = _last_touch(files) if kind == "stock" else mark[1] / 1e9
        self.used = max(self.used, used)

    def entry(self) -> Entry:
        """Make the entry, once all its copies have been added."""
        assert self.facts is not None
        held = [inode.size_bytes for inode in self.inodes if inode.links > inode.found]
        compiled = [self.files[name].mtime_ns for name in _compiled_files(self.files)]
        files = [File(name, inode.size_bytes) for name, inode in self.files.items()]
        return Entry(
            key=self.key,
            kind=_entry_kind(self.facts),
            kernel=self.facts.kernel.removesuffix(AUTOTUNE),
            target=self.facts.target,
            triton_version=self.facts.triton_version,
            files=tuple(files),
            copies=tuple(self.copies),
            logical_bytes=sum([copy.logical_bytes for copy in self.copies]),
            physical_bytes=sum([copy.physical_bytes for copy in self.copies]),
            held_bytes=sum(held),
            created=max(compiled) / 1e9,
            used=self.used,
        )


def is_tritons(names: Collection[str], directories: Collection[str]) -> bool:
    """Whether a directory that is named like a key surely is one of Triton's, by the files in it."""
    if directories:
        return False
    if any(name.startswith(GROUP) for name in names):
        return True
    stages = [name for name in names if _STAGES.fullmatch(name)]
    others = [name for name in names if name not in stages and not name.endswith(".json")]
    return bool(stages) and not others


def touched(path: str) -> float:
    """When a stock directory was used last, as the disk says now; 0 where the directory is gone."""
    files: dict[str, Inode] = {}
    try:
        with os.scandir(path) as items:
            for item in items:
                if item.is_file():
                    files[item.name] = Inode(item.stat(follow_symlinks=False))
    except OSError:
        return 0.0
    return _last_touch(files) if files else 0.0


def _copy_kind(directory: str | None, files: Mapping[str, Inode]) -> CopyKind:
    if directory is None:
        return "store"
    return "view" if MANIFEST in files else "stock"


def _compiled_files(files: Mapping[str, Inode]) -> Iterable[str]:
    """The names of the files that were compiled: not the manifest or the group, unless there is nothing else."""
    return [name for name in files if not name.startswith("__")] or files


def _last_touch(files: Mapping[str, Inode]) -> float:
    """When a stock directory was used last: the newest access or change of its files, in seconds since the epoch.

    The metadata file does not count, since `_facts_of_stock` reads it, and that must not look like a use.
    """
    metadata_files = {name.removeprefix(GROUP) for name in files if name.startswith(GROUP)}
    times = [
        max(files[name].accessed, files[name].modified)
        for name in _compiled_files(files)
        if name not in metadata_files
    ]
    newest = max(times, default=0.0)
    return newest or max(inode.modified for inode in files.values())


def _facts_of_stock(path: str, files: Mapping[str, Inode]) -> Facts:
    """Read what Triton's own files say of an entry that has no manifest."""
    groups = [name.removeprefix(GROUP) for name in files if name.startswith(GROUP)]
    if not groups:
        return Facts(min(_compiled_files(files)), None)
    group = groups[0]
    target = version = None
    if group in files and files[group].readable(READ_BYTES):
        target, version = metadata.brief(f"{path}/{group}")
    return Facts(group.removesuffix(".json"), group, target, version)


def _entry_kind(facts: Facts) -> EntryKind:
    if facts.group is not None:
        return "kernel"
    if facts.kernel.endswith(".so"):
        return "library"
    return "autotune" if facts.kernel.endswith(AUTOTUNE) else "file"
