"""What a removal spares because it was used just now, where a person may say that nothing is to be spared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from gpucache.report.entries import Entry
from gpucache.store.recency import check_grace, oldest_first, spare_recent
from gpucache.upkeep.execution import Skipped
from gpucache.upkeep.plan import used_lately

NO_GRACE = -math.inf


def divided(
    entries: Iterable[Entry], grace_s: float, environ: Mapping[str, str], now: float
) -> tuple[list[Entry], list[Skipped]]:
    """Divide entries into those that may go, least recently used first, and those that stay; of the latter it says why.

    What was used in ``grace_s`` seconds stays. `NO_GRACE` spares nothing; else the grace is at least twice the interval
    of stamps (`GPUCACHE_STAMP_S`), since an entry in use could look older than it is.

    Raises:
        ConfigurationError: the grace is shorter.
    """
    if grace_s != NO_GRACE:
        check_grace(grace_s, environ)
    going, staying = spare_recent(oldest_first(entries, now), grace_s, now)
    return going, used_lately(staying, now)
