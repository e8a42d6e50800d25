"""`Plan`: what is to go from a root, as a value; `plan` makes it of a report and a policy, `execute` carries it out.

A policy is a `gpucache.upkeep.prune.PrunePolicy` (what is old, over a limit or of no more use), a
`gpucache.upkeep.clean.CleanPolicy` (everything), or a `gpucache.upkeep.named.NamedPolicy` (what a person has named).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gpucache.configuration import for_all
from gpucache.report.cache_report import CacheReport, Progress
from gpucache.report.entries import Entry
from gpucache.report.strays import Stray
from gpucache.store.foreign import forget_gone
from gpucache.store.inductor_units import InductorFile, Unit
from gpucache.store.jit_units import JitUnit
from gpucache.store.size import count_anew_later
from gpucache.units import ago
from gpucache.upkeep.execution import Execution, Outcome, Skipped
from gpucache.upkeep.slim import slimmed_bytes


class Policy(Protocol):
    """Decides what may go from a root, and how much of it."""

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan what this policy removes from a root as it was scanned, at a time in seconds since the epoch."""
        ...


def plan(
    report: CacheReport, policy: Policy, environ: Mapping[str, str], now: float | None = None
) -> Plan:
    """Plan what the policy removes from a root as it was scanned; ``now`` is in seconds since the epoch.

    Raises:
        ConfigurationError: the grace is shorter than twice the interval of stamps, or the version specifier is none.
    """
    if now is None:
        now = time.time()
    return policy.planned(report, for_all(report.root, environ), now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to go, as a value: nothing happens before `execute`."""

    root: str
    removing: tuple[Entry, ...]
    slimming: tuple[Entry, ...]
    """Kernels that are to be smaller, and stay."""
    strays: tuple[Stray, ...]
    files: tuple[InductorFile, ...] = ()
    """TorchInductor's, each by itself."""
    units: tuple[Unit, ...] = ()
    """What else of TorchInductor's may go alone."""
    empty: tuple[str, ...] = ()
    """Directories of its graphs in which nothing was left a day ago."""
    jit_units: tuple[JitUnit, ...] = ()
    """What may go alone of other JIT caches."""
    jit_left: tuple[JitUnit, ...] = ()
    """What killed writers of other JIT caches, and killed removals, have left."""
    kept: tuple[Skipped, ...]
    """What the policy would have go, and the grace or somebody's use keeps."""
    left: tuple[str, ...] = ()
    """Paths below the root that are no cache, as far as their names tell, and stay; of a directory without any cached
    file, its own path only. Only where the policy is to remove everything."""
    spared: tuple[Skipped, ...] = ()
    """Whole JIT caches that the policy leaves alone, and why. Only where the policy is to remove everything."""

    @property
    def inductor_files(self) -> list[InductorFile]:
        """All files of TorchInductor's that are to go."""
        files = list(self.files)
        for unit in self.units:
            files += unit.files
            if unit.lock is not None:
                files.append(unit.lock)
        return files

    @property
    def foreign(self) -> dict[str, int]:
        """The device directories outside the root, with how many views of the planned entries each has."""
        below = f"{self.root}/"
        views: Counter[str] = Counter()
        for entry in (*self.removing, *self.slimming):
            for copy in entry.copies:
                if not copy.path.startswith(below):
                    views[os.path.dirname(copy.path)] += 1
        return dict(sorted(views.items()))

    @property
    def physical_bytes(self) -> int:
        """How many bytes the plan is going to free: files with links elsewhere are not freed."""
        removed = sum(_freed_bytes(entry) for entry in self.removing)
        slimmed = 0
        for entry in self.slimming:
            slimmed += min(slimmed_bytes(entry), _freed_bytes(entry))
        strays = sum(stray.size_bytes for stray in self.strays)
        files = sum(file.physical_bytes for file in self.inductor_files)
        jits = sum(unit.physical_bytes for unit in (*self.jit_units, *self.jit_left))
        return removed + slimmed + strays + files + jits

    @property
    def logical_bytes(self) -> int:
        """As `physical_bytes`, with hard links counted each time."""
        removed = sum(entry.logical_bytes for entry in self.removing)
        slimmed = 0
        for entry in self.slimming:
            times = len(entry.copies) if entry.stored else 1  # else all copies are counted already
            slimmed += slimmed_bytes(entry) * times
        strays = sum(stray.size_bytes for stray in self.strays)
        files = sum(file.size_bytes for file in self.inductor_files)
        jits = sum(unit.logical_bytes for unit in (*self.jit_units, *self.jit_left))
        return removed + slimmed + strays + files + jits

    def execute(self, progress: Progress | None = None) -> Outcome:
        """Carry the plan out.

        Beside any readers, writers and removers; killed at any instant, every entry is whole or gone. An entry that was
        used since the plan was made, or whose key is locked, is skipped and told; so is what a link leads to, and a
        file that was used since. ``progress`` is told now and then how many entries are done, of how many.
        """
        work = Execution(self.root)
        entries = (*self.removing, *self.slimming)
        total = len(entries)
        count_anew_later(self.root)  # also if this is killed
        try:
            for stray in self.strays:  # first: whoever writes sweeps some of them too
                work.sweep(stray)
            for number, entry in enumerate(entries):
                if progress is not None and number % 16 == 0:
                    progress(number, total)
                if number < len(self.removing):
                    work.remove(entry)
                else:
                    work.slim(entry)
            work.remove_units(self.units, self.empty)
            work.remove_files(self.files)
            work.remove_jit_units(self.jit_units, self.jit_left)
        finally:
            count_anew_later(self.root)
            forget_gone(self.root)
            work.close()
        return work.outcome()


def used_lately(staying: Iterable[Entry | Unit | JitUnit], now: float) -> list[Skipped]:
    """Tell of what stays because of the grace how long ago each was used."""
    kept = []
    for one in staying:
        why = f"used {ago(now - one.used)}"
        kept.append(Skipped(one.key if isinstance(one, Entry) else one.path, why))
    return kept


def _freed_bytes(entry: Entry) -> int:
    return entry.physical_bytes - entry.held_bytes
