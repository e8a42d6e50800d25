"""`Selection`: the conditions by which commands as `ls`, `rm` and `prune` choose kernels. Asks nothing of the disk."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucache.store.recency import STAMP_S

if TYPE_CHECKING:
    from typing import Protocol

    from gpucache.report.entries import Entry, EntryKind

    class Listed(Protocol):
        """What a selection looks at: an entry of a report, or a kernel of the store."""

        @property
        def kernel(self) -> str: ...  # noqa: D102
        @property
        def arch(self) -> str | None: ...  # noqa: D102
        @property
        def directories(self) -> tuple[str, ...]: ...  # noqa: D102
        @property
        def used(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The conditions that a kernel must meet, all of them; a condition that is None is met by each."""

    kernel: str | None = None
    """A pattern of the kernel's name, as a shell matches file names, case and all."""
    arch: str | None = None
    """``sm_90``."""
    directory: str | None = None
    """The name of a device directory that has the entry."""
    older_than_s: float | None = None
    """For how long the entry was not used."""
    used_since_s: float | None = None
    """Within how long the entry was used."""
    larger_than_bytes: int | None = None
    """Physical bytes."""
    kind: EntryKind | None = None
    unused: bool = False
    """Only what nobody used after the first five minutes, in which a use leaves no stamp."""

    def has(self, entry: Entry, now: float) -> bool:
        """Whether an entry meets all conditions at this time, in seconds since the epoch."""
        if not self.chooses(entry, now):
            return False
        if self.kind is not None and entry.kind != self.kind:
            return False
        if self.unused and entry.used > entry.created + STAMP_S:
            return False
        least = self.larger_than_bytes
        return least is None or entry.physical_bytes > least

    def chooses(self, listed: Listed, now: float) -> bool:
        """Whether a kernel meets all conditions but those of an entry's size, kind and first use."""
        if self.kernel is not None and not fnmatch.fnmatchcase(listed.kernel, self.kernel):
            return False
        if self.arch is not None and listed.arch != self.arch:
            return False
        if self.directory is not None and self.directory not in listed.directories:
            return False
        unused_s = now - listed.used
        if self.older_than_s is not None and unused_s <= self.older_than_s:
            return False
        return self.used_since_s is None or unused_s <= self.used_since_s


EVERYTHING = Selection()
"""No condition at all."""
