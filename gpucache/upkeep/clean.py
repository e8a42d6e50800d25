"""`CleanPolicy`: removes all that is cached in a root, and nothing else.

Entries, strays, TorchInductor's files and the units of other JIT caches go. Device directories, the record of the
devices and the counters stay: they are no caches, and workers resolve by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpucache.report.cache_report import CacheReport
from gpucache.store.recency import STAMP_S
from gpucache.upkeep.execution import Skipped
from gpucache.upkeep.grace import divided
from gpucache.upkeep.inductor_files import sort_files
from gpucache.upkeep.jit_prune import everything
from gpucache.upkeep.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanPolicy:
    """A policy by which everything goes that is cached, but for what was used just now."""

    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays, or with `NO_GRACE` nothing (`gpucache.upkeep.grace`)."""

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan to remove everything in a root as it was scanned, at a time in seconds since the epoch.

        Raises:
            ConfigurationError: the grace is shorter than twice the interval of stamps.
        """
        going, kept = divided(report.entries, self.grace_s, environ, now)
        others = sort_files(report, since=now - self.grace_s)
        for path in others.in_use:
            kept.append(Skipped(path, "in use"))
        jits = everything(report.root, self.grace_s, now)
        kept += jits.kept
        dead = []
        for stray in report.strays:
            if stray.dead:
                dead.append(stray)
            else:
                kept.append(Skipped(stray.path, "somebody may be at it"))
        return Plan(
            root=report.root,
            removing=tuple(going),
            slimming=(),
            strays=tuple(dead),
            files=others.files,
            jit_units=jits.jit_units,
            jit_left=jits.jit_left,
            spared=jits.spared,
            kept=tuple(kept),
            left=others.left,
        )
