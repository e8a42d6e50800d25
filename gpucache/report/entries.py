"""An entry, in all the directories that have it: as a value, and as it is put together from what is found of it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpucache.kernels import metadata
from gpucache.kernels.group import GROUP
from gpucache.report.inodes import Inode
from gpucache.store.manifest import MANIFEST, Facts

READ_BYTES = 2**20
"""What is longer is no metadata and no manifest, and is not read."""
_AUTOTUNE = ".autotune.json"
# What Triton 3.0 to 3.9 puts into a key directory without a group: what a compile has made so far, and what it builds.
_STAGES = re.compile(r".+\.(?:source|ttir|ttgir|llir|ptx|cubin|amdgcn|hsaco|so|autotune\.json)")


class File(NamedTuple):
    """A file of an entry."""

    name: str
    size_bytes: int


class Copy(NamedTuple):
    """One directory of an entry."""

    path: str
    kind: str
    """``store``, ``view`` (of ours) or ``stock`` (Triton's own)."""
    directory: str | None
    """The name of the device directory; None for the store."""
    logical_bytes: int
    physical_bytes: int
    """Without what an earlier copy has already: the store's comes first."""
    mark: tuple[int, int]
    """Inode and modification time (ns) of the manifest, which tell of a use since; of a stock directory, its own, which
    tell of a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One compiled kernel, shared library or autotune result, in all the directories that have it."""

    key: str
    """Triton's key; a file that stands for itself is stored under ``<key>-<16 hexadecimal digits>``."""
    kind: str
    """``kernel``, ``library``, ``autotune`` or ``file``."""
    kernel: str
    """Its name; of what is no kernel, the file's."""
    target: str | None
    """``cuda:90``; None where unknown."""
    triton_version: str | None
    files: tuple[File, ...]
    """Of the first copy."""
    copies: tuple[Copy, ...]
    logical_bytes: int
    """Hard links counted each time."""
    physical_bytes: int
    """Hard links counted once."""
    held_bytes: int
    """The part of the physical bytes that has links elsewhere too, so that a removal does not free it."""
    created: float
    """Seconds since the epoch: the newest of its files."""
    used: float
    """Seconds since the epoch: the last stamp of a use, which is made every five minutes at most; for an entry of stock
    Triton, which stamps nothing, the newest access or change of a file (Linux renews access times once a day)."""

    @property
    def directories(self) -> tuple[str, ...]:
        """The device directories that have it."""
        return tuple(copy.directory for copy in self.copies if copy.directory is not None)

    @property
    def stored(self) -> bool:
        """Whether the store has it."""
        return self.copies[0].kind == "store"

    @property
    def arch(self) -> str | None:
        """``sm_90``, or what other makers call theirs (``gfx942``)."""
        return metadata.arch_of(self.target) if self.target is not None else None


class Gathered:
    """An entry while its copies are being found."""

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
        kind = "store" if directory is None else "view" if MANIFEST in files else "stock"
        self.copies.append(Copy(path, kind, directory, logical, physical, mark))
        self.files = self.files or files
        self.facts = facts or self.facts or _told(path, files)
        self.used = max(self.used, _touched(files) if kind == "stock" else mark[1] / 1e9)

    def entry(self) -> Entry:
        """The entry, once all its copies are there."""
        assert self.facts is not None
        return Entry(
            key=self.key,
            kind=_kind(self.facts),
            kernel=self.facts.kernel.removesuffix(_AUTOTUNE),
            target=self.facts.target,
            triton_version=self.facts.triton_version,
            files=tuple([File(name, inode.size_bytes) for name, inode in self.files.items()]),
            copies=tuple(self.copies),
            logical_bytes=sum([copy.logical_bytes for copy in self.copies]),
            physical_bytes=sum([copy.physical_bytes for copy in self.copies]),
            held_bytes=sum(
                [inode.size_bytes for inode in self.inodes if inode.links > inode.found]
            ),
            created=max([self.files[name].mtime_ns for name in _contents(self.files)]) / 1e9,
            used=self.used,
        )


def is_tritons(names: Collection[str], directories: Collection[str]) -> bool:
    """Whether a directory that is named like a key surely is one of Triton's, by what is in it."""
    grouped = any(name.startswith(GROUP) for name in names)
    stages = [name for name in names if _STAGES.fullmatch(name)]
    others = [name for name in names if name not in stages and not name.endswith(".json")]
    return not directories and (grouped or bool(stages and not others))


def _contents(files: Mapping[str, Inode]) -> Iterable[str]:
    """The files that were compiled: not the manifest or the group, unless there is nothing else."""
    return [name for name in files if not name.startswith("__")] or files


def _touched(files: Mapping[str, Inode]) -> float:
    """When a stock directory was used last. Reading its metadata, as `_told` does, must not look like a use."""
    read = {name.removeprefix(GROUP) for name in files if name.startswith(GROUP)}
    used = [
        max(files[name].accessed, files[name].mtime_ns / 1e9)
        for name in _contents(files)
        if name not in read
    ]
    return max(used, default=0.0) or max(inode.mtime_ns for inode in files.values()) / 1e9


def touched(path: str) -> float:
    """When a stock directory was used last, as it is now; 0 where it is gone."""
    try:
        with os.scandir(path) as items:
            files = {
                item.name: Inode(item.stat(follow_symlinks=False))
                for item in items
                if item.is_file()
            }
    except OSError:
        return 0.0
    return _touched(files) if files else 0.0


def _told(path: str, files: Mapping[str, Inode]) -> Facts:
    """What Triton's own files say of an entry without a manifest."""
    group = next((name.removeprefix(GROUP) for name in files if name.startswith(GROUP)), None)
    if group is None:
        return Facts(min(_contents(files)), None)
    target = version = None
    if group in files and files[group].readable(READ_BYTES):
        target, version = metadata.brief(f"{path}/{group}")
    return Facts(group.removesuffix(".json"), group, target, version)


def _kind(facts: Facts) -> str:
    if facts.group is not None:
        return "kernel"
    if facts.kernel.endswith(".so"):
        return "library"
    return "autotune" if facts.kernel.endswith(_AUTOTUNE) else "file"
