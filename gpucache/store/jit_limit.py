"""Keep other JIT caches in a root within `GPUCACHE_JIT_MAX_SIZE` together, where that is set.

Their software tells nobody what it writes, and most of it removes nothing. So they are looked at once an hour a root,
by a process that has just published a kernel of Triton's; what was used least recently goes, whichever cache has it,
down to nine tenths. What has no units, as the driver's cache, which bounds itself, and what is dear (`JitCache.dear`)
neither counts nor goes.
`jit_units` says what may go, `jit_removal` how.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from gpucache.disk import mounts
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.layout.jit_caches import JIT_CACHES, by_name
from gpucache.store.hourly import is_due, note
from gpucache.store.jit_removal import LEAST_GRACE_S, remove_unit, sweep
from gpucache.store.jit_units import JitUnits, find, is_left_behind
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
    mark = paths.ours(root, "stats", "jit")
    if not is_due(mark):
        return
    found = find(root, [cache for cache in JIT_CACHES if cache.units and not cache.dear], rest)
    mounted = mounts.below([root])
    with Straight() as disk:
        for one in found:
            _sweep(one, mounted, disk)
        units = [unit for one in found for unit in one.units]
        is_done = remove_over(
            units,
            most_bytes,
            max(grace_s, LEAST_GRACE_S),
            lambda unit: remove_unit(unit, by_name(unit.cache), mounted, disk).physical_bytes,
            rest,
        )
    if is_done:
        note(mark)


def _sweep(found: JitUnits, mounted: list[str], disk: Straight) -> None:
    """Remove what killed writers and killed removals have left."""
    now = time.time()
    for left in (*found.aside, *found.staged):
        if left in found.aside or is_left_behind(left, now):
            with suppress(InUse):
                sweep(left, found.cache, mounted, disk)
