"""`NamedPolicy`: removes the entries that a person has named, and nothing else, not even what dead processes left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpucache.report.cache_report import CacheReport
from gpucache.store.recency import STAMP_S
from gpucache.upkeep.grace import divided
from gpucache.upkeep.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPolicy:
    """A policy by which these entries go, but for what was used just now."""

    keys: frozenset[str]
    """Whole keys of entries."""
    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays, or with `NO_GRACE` nothing (`gpucache.upkeep.grace`)."""

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan to remove the named entries of a root as it was scanned, at a time in seconds since the epoch.

        Raises:
            ConfigurationError: the grace is shorter than twice the interval of stamps.
        """
        named = [entry for entry in report.entries if entry.key in self.keys]
        going, kept = divided(named, self.grace_s, environ, now)
        return Plan(
            root=report.root,
            removing=tuple(going),
            slimming=(),
            strays=(),
            kept=tuple(kept),
        )
