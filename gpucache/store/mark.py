"""The mark from which `gpucache stats` counts since ``stats --reset``: the sums as they stood then, in a small file.

Nothing that was counted is taken away: what reads rates from the counters, as Prometheus does, sees none fall.
"""

from __future__ import annotations

import errno
import json
import os
import time

from gpucache.disk.door import COUNTERS_BYTES, read_limited
from gpucache.disk.files import make_below_root, write_whole
from gpucache.errors import ProvisionError
from gpucache.layout.keys import unlinked
from gpucache.layout.paths import ours
from gpucache.store.counter_files import fit
from gpucache.store.counts import (
    ANY_HOST,
    ANY_TIME,
    ELSEWHERE,
    Sums,
    Values,
    Where,
    add,
    bounded,
    encoded,
    parsed,
    parsed_moment,
    this_hour,
)
from gpucache.values import Value

_VERSION = 1


class Mark(Value):
    """Sums as they stood at one moment."""

    at: float
    """When, in seconds since the epoch."""
    sums: Sums
    """By host and device directory; all hours are `ANY_TIME`."""


def set_mark(root: str, sums: Sums) -> Mark:
    """Put the mark of a root here, in the place of the one before; ``sums`` are what was counted up to now.

    Atomic for readers. It holds for all who share the root.

    Raises:
        ProvisionError: the operating system refused; the old mark is untouched.
    """
    kept = bounded(_without_hours(sums), this_hour(), fit)
    mark = Mark(time.time(), kept)
    path = _path(root)
    make_below_root(os.path.dirname(path))
    if unlinked(root, "stats") is None:
        raise ProvisionError(path, errno.ELOOP)
    make_below_root(ours(root, "tmp"))
    said = {"version": _VERSION, "at": mark.at, "sums": encoded(mark.sums)}
    write_whole(path, json.dumps(said).encode(), ours(root, "tmp"))
    return mark


def mark_of(root: str) -> Mark | None:
    """The mark of a root; None where there is none, or one that makes no sense. Never raises."""
    try:
        said = json.loads(read_limited(_path(root), COUNTERS_BYTES))
        if said["version"] != _VERSION:
            return None
        return Mark(parsed_moment(said["at"]), _without_hours(parsed(said["sums"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def since_mark(sums: Sums, mark: Mark) -> Sums:
    """What was counted since a mark, by host and device directory.

    What a fold has meanwhile put under no host's name, or under no path's (`counts.bounded`), is taken from there, so
    that the sums over all are right.
    """
    left = _without_hours(sums)
    for where, values in mark.sums.items():
        rest = values
        for place in _places(where):
            rest = _take(left, place, rest)
    return left


def _places(where: Where) -> list[Where]:
    """Where a sum may be by now, in the order in which it may have gone there."""
    directories = [where.device, ELSEWHERE]
    return [Where(host, device) for host in (where.host, ANY_HOST) for device in directories]


def _take(sums: Sums, place: Where, values: Values) -> Values:
    """Take values from a sum, as far as it has so much; what is left to be taken elsewhere."""
    there = sums.get(place, {})
    rest: Values = {}
    for name, value in values.items():
        taken = min(value, there.get(name, 0))
        if taken:
            there[name] -= taken
        if value > taken:
            rest[name] = value - taken
    return rest


def _without_hours(sums: Sums) -> Sums:
    """The sums by host and device directory."""
    whole: Sums = {}
    for where, values in sums.items():
        add(whole, where._replace(hour=ANY_TIME), values)
    return whole


def _path(root: str) -> str:
    return ours(root, "stats", "mark")
