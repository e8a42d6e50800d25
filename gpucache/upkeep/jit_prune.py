"""`UnitPolicy`: which units of other JIT caches go, by age and size, least recently used first.

Only what was named goes, but for `clean`, which takes `everything`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from gpucache.disk.reading import listed
from gpucache.errors import ConfigurationError
from gpucache.layout.jit_cache import JitCache
from gpucache.layout.jit_caches import JIT_CACHES
from gpucache.store.jit_removal import LEAST_GRACE_S
from gpucache.store.jit_units import JitUnit, JitUnits, find, is_left_behind
from gpucache.store.recency import STAMP_S, Limits, oldest_first, over_limits, spare_recent
from gpucache.upkeep.execution import Skipped
from gpucache.upkeep.plan import Plan, used_lately


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPolicy:
    """A policy by which whole units of some JIT caches go; without a limit all that were not used just now."""

    caches: tuple[JitCache, ...]
    max_size_bytes: int | None = None
    """Physical bytes of the units of all these caches together."""
    max_age_s: float | None = None
    """Since the last use."""
    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays, whatever else is said; 15 minutes at least."""

    def __post_init__(self) -> None:
        """Refuse limits without sense, by which everything could go.

        Raises:
            ConfigurationError: a limit is negative or no number.
        """
        for name in ("max_size_bytes", "max_age_s", "grace_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # so that NaN is refused
                raise ConfigurationError(name, str(value), "a number from 0 on")

    def planned(self, root: str, now: float | None = None) -> Plan:
        """Look at these caches of a root, and plan what goes, at a time in seconds since the epoch."""
        root = os.path.realpath(root)
        if now is None:
            now = time.time()
        found = find(root, self.caches)
        units = oldest_first((unit for one in found for unit in one.units), now)
        limits = Limits(max_size_bytes=self.max_size_bytes, max_age_s=self.max_age_s)
        if limits:
            size_bytes = sum(map(_physical_bytes, units))
            units = over_limits(
                units, limits, _physical_bytes, size_bytes=size_bytes, count=0, now=now
            )
        return _plan(root, units, found, max(self.grace_s, LEAST_GRACE_S), now)


def everything(root: str, grace_s: float, now: float) -> Plan:
    """What `clean` removes of other JIT caches: all units but what is dear, and what was used within the grace.

    A negative grace spares nothing; any other is 15 minutes at least.
    """
    if grace_s >= 0:
        grace_s = max(grace_s, LEAST_GRACE_S)
    found = find(root, JIT_CACHES)
    units: list[JitUnit] = []
    spared = []
    for one in found:
        why = _spared(one)
        if why is None:
            units += one.units
        else:
            spared.append(Skipped(one.directory, why))
    cleaned = [one for one in found if _spared(one) is None]
    return _plan(root, oldest_first(units, now), cleaned, grace_s, now, spared)


def _spared(found: JitUnits) -> str | None:
    """Why `clean` leaves a cache alone; None where it does not, or nothing is in it."""
    cache = found.cache
    if cache.dear and found.units:
        return f"{cache.dear}; `gpucache prune --cache {cache.name}` removes it"
    if not cache.units and listed(found.directory):
        keeps = f"{cache.software} keeps it small by {cache.bounded_by}"
        return keeps if cache.bounded_by else "nothing in it may be removed alone"
    return None


def _plan(
    root: str,
    units: list[JitUnit],
    found: Iterable[JitUnits],
    grace_s: float,
    now: float,
    spared: Iterable[Skipped] = (),
) -> Plan:
    going, staying = spare_recent(units, grace_s, now)
    left: list[JitUnit] = []
    for one in found:
        left += one.aside
        left += [staged for staged in one.staged if is_left_behind(staged, now)]
    return Plan(
        root=root,
        removing=(),
        slimming=(),
        strays=(),
        jit_units=tuple(going),
        jit_left=tuple(left),
        kept=tuple(used_lately(staying, now)),
        spared=tuple(spared),
    )


def _physical_bytes(unit: JitUnit) -> int:
    return unit.physical_bytes
