"""`CleanPolicy`: remove all that is cached in a root, and nothing that is not.

Entries, strays and TorchInductor's files go. Device directories, the record of the devices and the counters stay: they
are no caches, and workers resolve by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gpucache.report.cache_report import CacheReport
from gpucache.store.recency import STAMP_S, check_grace, oldest_first, spare_recent
from gpucache.units import ago
from gpucache.upkeep.execution import Skipped
from gpucache.upkeep.inductor_files import sort_files
from gpucache.upkeep.plan import Plan

NO_GRACE = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanPolicy:
    """Everything may go, but for what was used just now."""

    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays; at least twice the interval of stamps (`GPUCACHE_STAMP_S`), or
    `NO_GRACE`, which spares nothing."""

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan to remove everything in a root as it was scanned, at a time in seconds since the epoch.

        Raises:
            ConfigurationError: the grace is shorter than twice the interval of stamps.
        """
        if self.grace_s != NO_GRACE:
            check_grace(self.grace_s, environ)
        entries = oldest_first(report.entries, now)
        going, staying = spare_recent(entries, self.grace_s, now)
        others = sort_files(report, since=now - self.grace_s)
        kept = [Skipped(entry.key, f"used {ago(now - entry.used)}") for entry in staying]
        kept += [Skipped(path, "in use") for path in others.in_use]
        alive = [stray for stray in report.strays if not stray.dead]
        kept += [Skipped(stray.path, "somebody may be at it") for stray in alive]
        return Plan(
            root=report.root,
            removing=tuple(going),
            slimming=(),
            strays=tuple(stray for stray in report.strays if stray.dead),
            files=others.files,
            kept=tuple(kept),
            left=others.left,
        )
