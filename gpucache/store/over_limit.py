"""Remove units of caches that other software writes, least recently used first, while they are over a limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from gpucache.log import INFO, tell
from gpucache.store.recency import is_recent, oldest_first
from gpucache.store.removal import InUse

_LOW = 0.9
_TURN_S = 2.0


class _Unit(Protocol):
    """What can be removed by itself."""

    @property
    def path(self) -> str: ...

    @property
    def physical_bytes(self) -> int: ...

    @property
    def used(self) -> float:
        """When it was last used, in seconds since the epoch."""


U = TypeVar("U", bound=_Unit)


def remove_over(
    units: Sequence[U],
    most_bytes: int,
    grace_s: float,
    remove: Callable[[U], int],
    rest: Callable[[], object],
) -> bool:
    """Remove units down to nine tenths of a limit if they are over it; return whether there was time for all.

    A turn takes two seconds. ``remove`` removes a unit and returns how many bytes that freed, or raises `InUse`: then
    the unit stays. What was used within ``grace_s`` stays as well. ``rest`` is called after each unit, and may wait.

    Raises:
        OSError: the disk refused.
    """
    size = sum(unit.physical_bytes for unit in units)
    if size <= most_bytes:
        return True
    aim = int(most_bytes * _LOW)
    now, deadline = time.time(), time.monotonic() + _TURN_S
    for unit in oldest_first(units, now):
        if size <= aim or is_recent(unit.used, now, grace_s):
            return True
        if time.monotonic() > deadline:
            return False
        with suppress(InUse):
            freed = remove(unit)
            size -= freed
            tell(INFO, "evicted: %s, %d bytes, not used since %.0f", unit.path, freed, unit.used)
        rest()
    return True
