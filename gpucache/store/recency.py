"""Which entries are evicted or pruned first: the least recently used, as many as a limit asks, none used recently.

The limit of the store, `gpucache prune` and `gpucache clean` all choose by these functions, which only look at values
and remove nothing. Pure, but for the clock of the machine's start and the environment that a caller passes.
"""

from __future__ import annotations

import time

from gpucache.environment import STAMP
from gpucache.errors import ConfigurationError
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Protocol, TypeVar

    class HasUse(Protocol):
        """Anything with the time of its last use, in seconds since the epoch."""

        @property
        def used(self) -> float: ...  # noqa: D102

    T = TypeVar("T", bound=HasUse)

_AHEAD_S = 86400.0

LEAST_GRACE_S = 2.0
"""The shortest grace that protects a reader: Triton opens the files after it was told that they are there, however
often uses are stamped."""

SKEW_S = 2.0
"""How far the clocks of a node and of its file server may differ; a use that lies further ahead has a wrong time."""

STAMP_S = STAMP.default
"""After so long the use of an entry is stamped again, unless `GPUCACHE_STAMP_S` says sooner."""


# ---- which uses are recent


def plausible(used: float, now: float) -> float:
    """The time of a use; 0, long ago, if that lies more than a day ahead of ``now``, which only a wrong clock says."""
    return used if used - now <= _AHEAD_S else 0.0


def is_recent(used: float, now: float, grace_s: float) -> bool:
    """Whether a use was ``grace_s`` ago or less, so that the entry may be in use."""
    return now - plausible(used, now) <= grace_s


def stamp_interval(environ: Mapping[str, str]) -> float:
    """The seconds after which a use is stamped again. At most the default, since other processes prune by that."""
    return min(STAMP.read_or_default(environ), STAMP_S)


def check_grace(grace_s: float, environ: Mapping[str, str]) -> None:
    """Refuse a grace in which an entry in use could look unused.

    Raises:
        ConfigurationError: the grace is shorter than twice `GPUCACHE_STAMP_S`, or no number.
    """
    least = max(2 * stamp_interval(environ), LEAST_GRACE_S)
    if not grace_s >= least:  # so that NaN is refused, which is neither shorter nor longer
        expected = (
            f"at least {least:g}s, which is twice {STAMP} (what is used is stamped no more often)"
        )
        raise ConfigurationError("--grace", f"{grace_s:g}s", expected)


def boot_time() -> float:
    """When this machine started, in seconds since the epoch."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time() - time.clock_gettime(clock)


# ---- which entries go


class Limits(Value, kw_only=True):
    """What entries may take together; None is no limit."""

    max_size_bytes: int | None = None
    max_entries: int | None = None
    max_age_s: float | None = None
    """Since the last use."""

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        limits = (self.max_size_bytes, self.max_entries, self.max_age_s)
        return any(limit is not None for limit in limits)


def oldest_first(entries: Iterable[T], now: float) -> list[T]:
    """Sort entries as they are removed: least recently used first, and before all those dated more than a day ahead."""
    return sorted(entries, key=lambda entry: plausible(entry.used, now))


def over_limits(
    entries: Sequence[T],
    limits: Limits,
    freed_bytes: Callable[[T], int],
    *,
    size_bytes: int,
    count: int,
    now: float,
) -> list[T]:
    """The shortest beginning of ``entries``, which are oldest first, without which the rest is within the limits.

    ``size_bytes`` and ``count`` are what there is of all entries, also of those that are not to be chosen from;
    ``freed_bytes`` tells what the removal of one entry frees.
    """
    for number, entry in enumerate(entries):
        age_s = now - plausible(entry.used, now)
        too_old = limits.max_age_s is not None and age_s > limits.max_age_s
        too_large = limits.max_size_bytes is not None and size_bytes > limits.max_size_bytes
        too_many = limits.max_entries is not None and count > limits.max_entries
        if not (too_old or too_large or too_many):
            return list(entries[:number])
        size_bytes -= freed_bytes(entry)
        count -= 1
    return list(entries)


def spare_recent(entries: Iterable[T], grace_s: float, now: float) -> tuple[list[T], list[T]]:
    """Divide entries, in their order, into those that may go and those that stay, used within the grace."""
    going: list[T] = []
    staying: list[T] = []
    for entry in entries:
        if is_recent(entry.used, now, grace_s):
            staying.append(entry)
        else:
            going.append(entry)
    return going, staying
