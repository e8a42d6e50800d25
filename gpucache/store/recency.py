"""When an entry was used last, and which uses are recent. Pure but for the clock of the machine's start."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gpucache.environment import STAMP
from gpucache.errors import ConfigurationError

_AHEAD_S = 86400.0


LEAST_GRACE_S = 2.0  # Triton opens the files after our return, however often uses are stamped


def is_recent(used: float, now: float, grace_s: float) -> bool:
    """Whether a use is within the grace."""
    return now - plausible(used, now) <= grace_s


def plausible(used: float, now: float) -> float:
    """The time of a use; long ago where it is more than a day ahead, which only a wrong clock says."""
    return used if used - now <= _AHEAD_S else 0.0


STAMP_S = STAMP.default
"""The use of an entry is stamped again after so long."""


def boot_time() -> float:
    """When this machine started, in seconds since the epoch."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def stamp_interval(environ: Mapping[str, str]) -> float:
    """How often at most a use is stamped, in seconds. Never more seldom than by default, by which others prune."""
    return min(STAMP.read_or_default(environ), STAMP_S)


def check_grace(grace_s: float, environ: Mapping[str, str]) -> None:
    """Refuse a grace in which an entry in use could look unused.

    Raises:
        ConfigurationError: it is shorter than twice `GPUCACHE_STAMP_S`.
    """
    least = max(2 * stamp_interval(environ), LEAST_GRACE_S)
    if grace_s < least:
        expected = (
            f"at least {least:g}s, which is twice {STAMP} (what is used is stamped no more often)"
        )
        raise ConfigurationError("--grace", f"{grace_s:g}s", expected)
