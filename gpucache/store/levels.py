"""The counters by level: where a kernel was looked for, in the order in which a launch looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

LevelName = Literal["directory", "store", "remote"]


class Level(NamedTuple):
    """What one level was asked and gave; None is what nobody counts there."""

    hits: int
    misses: int
    errors: int | None = None
    """Failures, after which the kernel was looked for no further there."""
    bytes: int | None = None
    seconds: float | None = None
    """Of the store, the waits for compiles of other processes; of the remote, the time of the asks."""


def levels(values: Mapping[str, float]) -> dict[LevelName, Level]:
    """The levels of the device directory, of the node's store and of the remote, by their names.

    ``values`` are counters by name (`counts.COUNTERS`, `counts.SECONDS`). What the remote gave became a hit of the
    store, and counts here as a miss of the store.
    """
    count = {name: round(value) for name, value in values.items()}
    from_remote = count.get("remote_hits", 0)
    shared = count.get("shared_hits", 0)
    compiled = count.get("misses", 0)
    return {
        "directory": Level(count.get("hits", 0), shared + compiled),
        "store": Level(
            hits=max(0, shared - from_remote),
            misses=compiled + from_remote,
            errors=count.get("errors_degraded", 0),
            seconds=values.get("waited_s", 0),
        ),
        "remote": Level(
            hits=from_remote,
            misses=count.get("remote_misses", 0),
            errors=count.get("remote_errors", 0) + count.get("remote_bad", 0),
            bytes=count.get("remote_bytes", 0),
            seconds=values.get("remote_s", 0),
        ),
    }
