"""`Entry`: one cached kernel, library or autotune result with all its copies, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from gpucache.kernels import metadata
from gpucache.store.manifest import RECIPE

EntryKind = Literal["kernel", "library", "autotune", "file"]
CopyKind = Literal["store", "view", "stock"]


class File(NamedTuple):
    """A file of an entry, with its size."""

    name: str
    size_bytes: int


class Copy(NamedTuple):
    """One of the directories that have an entry: the store's, or a device's."""

    path: str
    kind: CopyKind
    """``store``, ``view`` (hard links to the store's files) or ``stock`` (made by Triton's own cache manager)."""
    directory: str | None
    """The name of the device directory; None for the store."""
    logical_bytes: int
    physical_bytes: int
    """Without the files that an earlier copy has already: the store's copy comes first."""
    mark: tuple[int, int]
    """Inode and modification time (ns) of the manifest, which tell of a use since; of a stock directory, its own, which
    tell of a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One compiled kernel, shared library or autotune result, in all the directories that have it."""

    key: str
    """Triton's key; a file that stands for itself is stored under ``<key>-<16 hexadecimal digits>``."""
    kind: EntryKind
    kernel: str
    """The kernel's name; where the entry is no kernel, the name of its file."""
    target: str | None
    """``cuda:90``; None where unknown."""
    triton_version: str | None
    """As the metadata say, or for 3.2, which do not, the key; None where unknown."""
    files: tuple[File, ...]
    """The files of the first copy."""
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
    Triton, which stamps nothing, the newest access or change of a file (Linux renews access times once a day). In a
    root that others may read, a later access of a file of the store counts as well."""

    @property
    def directories(self) -> tuple[str, ...]:
        """The names of the device directories that have the entry."""
        names = [copy.directory for copy in self.copies]
        return tuple(name for name in names if name is not None)

    @property
    def stored(self) -> bool:
        """Whether the store has the entry, which then is its first copy."""
        return self.copies[0].kind == "store"

    @property
    def has_recipe(self) -> bool:
        """Whether the store has a recipe beside the entry, by which `gpucache warm` compiles the kernel again."""
        if self.kind != "kernel" or not self.stored or self.kernel == RECIPE.removesuffix(".json"):
            return False
        return any(file.name == RECIPE for file in self.files)

    @property
    def arch(self) -> str | None:
        """The architecture: ``sm_90``, or as other makers name it (``gfx942``); None where the target is unknown."""
        if self.target is None:
            return None
        return metadata.arch_of(self.target)
