"""`Watch`: what goes on in a root on this node, look by look: hits a second, compiles, the store, the remote.

Nothing is written, no lock is touched, and the store is not walked: what a look costs is to read the counters and the
locks' files. Hits reach the disk at most every two seconds (`store.stats`), so that rates are those of ten seconds, or
of as many as were watched.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress

from gpucache.layout.keys import device_directories
from gpucache.store.counter_files import host_label
from gpucache.store.counts import HOUR_S, add_up
from gpucache.store.levels import levels
from gpucache.store.limit import max_size_bytes
from gpucache.store.size import total_bytes
from gpucache.store.stats import REMOTE, sums_of
from gpucache.values import Value
from gpucache.watch.compiling import compiles
from gpucache.watch.remote_now import remote_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpucache.store.counts import Sums, Values
    from gpucache.store.levels import LevelName
    from gpucache.watch.compiling import Compile
    from gpucache.watch.remote_now import RemoteNow

_WINDOW_S = 10.0

Rates = dict["LevelName", float]
"""Kernels a second by the level that gave them."""


class Activity(Value):
    """What goes on in one device directory."""

    directory: str
    """Its name, or the path of one outside the root; ``warm`` for what is compiled ahead, for no device."""
    rates: Rates
    degraded: float
    """Failures of gpucache a second, after which kernels were compiled all the same."""
    compiles: tuple[Compile, ...]
    """Those that go on, the longest first."""


class StoreNow(Value):
    """What the store takes, and what goes."""

    size_bytes: int | None
    """As its writers keep the sum; None where nobody has counted yet."""
    limit_bytes: int | None
    """By the settings that are in force; 0 is no limit, None where the file system does not answer."""
    evicted: float
    """Entries a second that this host's processes have evicted."""
    evicted_bytes: float
    """The same in bytes a second."""


class Live(Value, kw_only=True):
    """What one look has seen of a root, on this node."""

    root: str
    host: str
    at: float
    """When, in seconds since the epoch."""
    window_s: float
    """The seconds of which the rates are; 0 after the first look, with which there are none."""
    devices: tuple[Activity, ...]
    all: Activity
    store: StoreNow
    remote: RemoteNow | None
    """None where no remote is set."""


class _Look(Value):
    """The counters at one moment: of this host, by device directory."""

    moment: float
    """On the clock of `time.monotonic`."""
    counters: dict[str, Values]


class Watch:
    """Looks at one root again and again. ``environ`` has the settings in force."""

    def __init__(self, root: str, environ: Mapping[str, str]) -> None:
        self.root = root
        self.environ = environ
        self._looks: deque[_Look] = deque()

    def look(self) -> Live:
        """Look now; the rates are those since a look about ten seconds ago, or since the first one.

        Never raises for what lies in the root; what cannot be read counts as nothing.
        """
        sums = sums_of(self.root)
        host = host_label()
        now = _Look(time.monotonic(), _of_host(sums, host))
        before = self._before(now)
        going_on = compiles(self.root)
        names = _names(self.root, sums, host, going_on)
        spent_s = now.moment - before.moment
        devices = []
        for name in names:
            own = tuple(one for one in going_on if one.directory == name)
            devices.append(_activity(name, _gained([name], before, now), spent_s, own))
        gained = _gained(now.counters, before, now)
        by_second = _by_second(gained, spent_s)
        return Live(
            root=self.root,
            host=host,
            at=time.time(),
            window_s=spent_s,
            devices=tuple(devices),
            all=_activity("all", gained, spent_s, going_on),
            store=self._store(by_second),
            remote=remote_now(self.root, self.environ, by_second),
        )

    def _before(self, now: _Look) -> _Look:
        """The look with which this one is compared; itself where it is the first."""
        self._looks.append(now)
        while len(self._looks) > 2 and now.moment - self._looks[1].moment >= _WINDOW_S:
            self._looks.popleft()
        return self._looks[0]

    def _store(self, by_second: Values) -> StoreNow:
        limit = None
        with suppress(OSError):  # the disk does not answer: it may, the next time
            limit = max_size_bytes(self.root, self.environ)
        return StoreNow(
            size_bytes=total_bytes(self.root),
            limit_bytes=limit,
            evicted=by_second.get("evicted", 0),
            evicted_bytes=by_second.get("evicted_bytes", 0),
        )


def _of_host(sums: Sums, host: str) -> dict[str, Values]:
    """The counters of a host, by device directory."""
    return add_up({where: values for where, values in sums.items() if where.host == host})


def _names(root: str, sums: Sums, host: str, going_on: Iterable[Compile]) -> list[str]:
    """The device directories to show: those of the root, and elsewhere those for which this host does something.

    That is what was counted in this hour or the last: a job may have a directory of its own, and another the next day.
    """
    inner = [name for name, _ in device_directories(root)]
    since = int(time.time() // HOUR_S) - 1
    busy = {where.device for where in sums if where.host == host and where.hour >= since}
    busy |= {one.directory for one in going_on}
    outer = sorted(busy - {REMOTE, *inner})
    return [*sorted(inner, key=_in_order), *outer]


def _in_order(name: str) -> tuple[bool, list[int], str]:
    """Numbers before other names, and by their values: ``10`` comes after ``9``, and ``1.2`` after ``1``."""
    parts = name.split(".")
    is_number = all(part.isascii() and part.isdigit() for part in parts)
    return not is_number, [int(part) for part in parts] if is_number else [], name


def _gained(names: Iterable[str], before: _Look, now: _Look) -> Values:
    """How much each counter of these directories has gained.

    Never less than nothing: what a host has counted is kept under no host's name once it was silent for 14 days.
    """
    gained: Values = {}
    for device in names:
        old = before.counters.get(device, {})
        for name, value in now.counters.get(device, {}).items():
            more = max(0.0, value - old.get(name, 0))
            gained[name] = gained.get(name, 0) + more
    return gained


def _by_second(gained: Values, spent_s: float) -> Values:
    """The same a second; nothing at the first look."""
    if spent_s <= 0:
        return {}
    return {name: value / spent_s for name, value in gained.items()}


def _activity(
    directory: str, gained: Values, spent_s: float, going_on: tuple[Compile, ...]
) -> Activity:
    rates: Rates = {}
    for name, level in levels(gained).items():
        rates[name] = level.hits / spent_s if spent_s > 0 else 0.0
    return Activity(
        directory=directory,
        rates=rates,
        degraded=_by_second(gained, spent_s).get("errors_degraded", 0.0),
        compiles=going_on,
    )
