"""`Selection`: the conditions by which `ls` chooses entries of a report. Asks nothing of the disk."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucache.report.entries import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The conditions that an entry must meet, all of them; a condition that is None is met by each."""

    kernel: str | None = None
    """A pattern of the kernel's name, as a shell matches file names, case and all."""
    arch: str | None = None
    """``sm_90``."""
    directory: str | None = None
    """The name of a device directory that has the entry."""
    older_than_s: float | None = None
    """For how long the entry was not used."""
    larger_than_bytes: int | None = None
    """Physical bytes."""

    def has(self, entry: Entry, now: float) -> bool:
        """Whether an entry meets all conditions at this time, in seconds since the epoch."""
        if self.kernel is not None and not fnmatch.fnmatchcase(entry.kernel, self.kernel):
            return False
        if self.arch is not None and entry.arch != self.arch:
            return False
        if self.directory is not None and self.directory not in entry.directories:
            return False
        if self.older_than_s is not None and now - entry.used <= self.older_than_s:
            return False
        if self.larger_than_bytes is not None:
            return entry.physical_bytes > self.larger_than_bytes
        return True
