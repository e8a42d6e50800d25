"""The counters by level: where a kernel was looked for, in the order in which a launch looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

LevelName = Literal["own", "store", "fallback", "remote", "compiled"]
"""The device directory of a process, the node's store, the root that is read after it, the remote, and the compiler."""


class Level(NamedTuple):
    """What one level was asked and gave; None is what nobody counts there."""

    hits: int
    misses: int | None = None
    errors: int | None = None
    """Failures, after which the kernel was looked for no further there."""
    bytes: int | None = None
    seconds: float | None = None
    """Of the store, the waits for compiles of other processes; of the others, the time of the asks or compiles."""


def hit_rate(values: Mapping[str, float]) -> float | None:
    """Which share of the kernels that were asked for was not compiled, from 0 to 1; None where none was asked for."""
    found = values.get("hits", 0) + values.get("shared_hits", 0)
    asked = found + values.get("misses", 0)
    return found / asked if asked else None


def levels(values: Mapping[str, float]) -> dict[LevelName, Level]:
    """The levels by their names, in the order in which a launch asks them; what was compiled is a hit of the last.

    ``values`` are counters by name (`counts.COUNTERS`, `counts.SECONDS`). What the fallback or the remote gave became a
    hit of the store, and counts here as a miss of the store.
    """
    count = {name: round(value) for name, value in values.items()}
    from_fallback = count.get("fallback_hits", 0)
    from_remote = count.get("remote_hits", 0)
    shared = count.get("shared_hits", 0)
    compiled = count.get("misses", 0)
    return {
        "own": Level(count.get("hits", 0), shared + compiled),
        "store": Level(
            hits=max(0, shared - from_fallback - from_remote),
            misses=compiled + from_fallback + from_remote,
            errors=count.get("errors_degraded", 0),
            seconds=values.get("waited_s", 0),
        ),
        "fallback": Level(
            hits=from_fallback,
            misses=count.get("fallback_misses", 0),
            errors=count.get("fallback_errors", 0),
            bytes=count.get("fallback_bytes", 0),
            seconds=values.get("fallback_s", 0),
        ),
        "remote": Level(
            hits=from_remote,
            misses=count.get("remote_misses", 0),
            errors=count.get("remote_errors", 0) + count.get("remote_bad", 0),
            bytes=count.get("remote_bytes", 0),
            seconds=values.get("remote_s", 0),
        ),
        "compiled": Level(compiled, seconds=values.get("compiled_s", 0)),
    }
