"""`NamedPolicy`: removes the entries that a person has named, and nothing else, not even what dead processes left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpucache.report.cache_report import CacheReport
from gpucache.store.recency import STAMP_S, check_grace, oldest_first, spare_recent
from gpucache.upkeep.clean import NO_GRACE
from gpucache.upkeep.plan import Plan, used_lately


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPolicy:
    """A policy by which these entries go, but for what was used just now."""

    keys: frozenset[str]
    """Whole keys of entries."""
    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays; at least twice the interval of stamps (`GPUCACHE_STAMP_S`), or
    `NO_GRACE`, which spares nothing."""

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan to remove the named entries of a root as it was scanned, at a time in seconds since the epoch.

        Raises:
            ConfigurationError: the grace is shorter than twice the interval of stamps.
        """
        if self.grace_s != NO_GRACE:
            check_grace(self.grace_s, environ)
        named = [entry for entry in report.entries if entry.key in self.keys]
        going, staying = spare_recent(oldest_first(named, now), self.grace_s, now)
        return Plan(
            root=report.root,
            removing=tuple(going),
            slimming=(),
            strays=(),
            kept=tuple(used_lately(staying, now)),
        )
