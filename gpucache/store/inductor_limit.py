"""Keep TorchInductor's code and graphs within `GPUCACHE_INDUCTOR_MAX_SIZE`, where that is set.

Torch tells nobody what it writes. So they are looked at once an hour a root, by a process that has just published a
kernel; what was used least recently goes, down to nine tenths. `inductor_units` says what may go, and how.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.store.hourly import is_due, note
from gpucache.store.inductor_units import LEAST_GRACE_S, Buckets, find_everywhere, remove_unit
from gpucache.store.over_limit import remove_over
from gpucache.store.removal import InUse


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
        is_done = remove_over(
            buckets.units,
            most_bytes,
            max(grace_s, LEAST_GRACE_S),
            lambda unit: remove_unit(unit, disk).physical_bytes,
            rest,
        )
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
