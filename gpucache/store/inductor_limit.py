"""Keep TorchInductor's code and graphs within `GPUCACHE_INDUCTOR_MAX_SIZE`, where that is set.

Torch tells nobody what it writes. So they are looked at once an hour a root, by a process that has just published a
kernel; what was used least recently goes, down to nine tenths. `inductor_units` says what may go, and how.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.log import INFO, tell
from gpucache.store.hourly import is_due, note
from gpucache.store.inductor_units import LEAST_GRACE_S, Buckets, Unit, find_everywhere, remove_unit
from gpucache.store.recency import is_recent, oldest_first
from gpucache.store.removal import InUse

_LOW = 0.9
_TURN_S = 2.0


def bound(root: str, most_bytes: int, grace_s: float, rest: Callable[[], object]) -> None:
    """Remove what is over the limit, unless that was used within ``grace_s``, or the root was looked at in this hour.

    The grace is 15 minutes at least.

    ``root`` is a real path. ``rest`` is called between the steps, and may wait. What a turn of two seconds of removals
    leaves, the next one takes.

    Raises:
        OSError: the disk refused.
    """
    mark = paths.ours(root, "stats", "inductor")
    if not is_due(mark):
        return
    buckets = find_everywhere(root, rest)
    with Straight() as disk:
        _sweep(buckets, disk)
        is_done = _remove_over(buckets.units, most_bytes, grace_s, rest, disk)
    if is_done:
        note(mark)


def _sweep(buckets: Buckets, disk: Straight) -> None:
    """Remove what killed writers left, and directories that were empty for a day."""
    for directory in buckets.empty:
        with suppress(OSError):  # something is in it again
            disk.rmdir(directory)
    for unit in buckets.temporaries:
        with suppress(InUse):
            remove_unit(unit, disk)


def _remove_over(
    units: tuple[Unit, ...],
    most_bytes: int,
    grace_s: float,
    rest: Callable[[], object],
    disk: Straight,
) -> bool:
    """Remove units, least recently used first, while they are over the limit; return whether there was time for all."""
    size = sum(unit.physical_bytes for unit in units)
    if size <= most_bytes:
        return True
    aim = int(most_bytes * _LOW)
    now, deadline = time.time(), time.monotonic() + _TURN_S
    for unit in oldest_first(units, now):
        if size <= aim or is_recent(unit.used, now, max(grace_s, LEAST_GRACE_S)):
            return True
        if time.monotonic() > deadline:
            return False
        with suppress(InUse):
            freed = remove_unit(unit, disk).physical_bytes
            size -= freed
            tell(INFO, "evicted: %s, %d bytes, not used since %.0f", unit.path, freed, unit.used)
        rest()
    return True
