"""`families`: what a root's counters, size and last findings say now, as the numbers of each metric.

Nothing is written, no lock is touched and the store is not walked. Counters never get less, beside processes that are
killed and folds: a sum is the same before and after a fold (`store.counter_look`), and of a fraction of a second too
(`store.counts.add`). A host that has counted nothing for 14 days may lose its name, and begins at 0 if it comes back,
which Prometheus takes for what it is, a restart.
"""

from __future__ import annotations

from contextlib import suppress

from gpucache import __version__
from gpucache.escapes import printable
from gpucache.layout.keys import device_directories
from gpucache.layout.paths import is_device_directory_name
from gpucache.store.counter_files import host_label
from gpucache.store.counts import ANY_HOST, ELSEWHERE
from gpucache.store.last_findings import last_findings
from gpucache.store.levels import levels
from gpucache.store.limit import max_size_bytes
from gpucache.store.size import total_bytes
from gpucache.store.stats import REMOTE, readable_sums_of
from gpucache.values import Value
from gpucache.watch.metrics.catalogue import (
    ALL,
    EXAMINED,
    FINDINGS,
    HITS,
    LEVEL_BYTES,
    LEVEL_ERRORS,
    LEVEL_SECONDS,
    MISSES,
    OF_DIRECTORY,
    OF_HOST,
    STORE_BYTES,
    STORE_LIMIT_BYTES,
    VERSION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Literal

    from gpucache.store.counts import Values
    from gpucache.watch.metrics.catalogue import About

    Hosts = Literal["own", "all"]
    """This host, or all that have counted in the root: 64 nodes of one root would export each other 64 times."""

_NAMED = (".", "triton", "warm")
"""Device directories that are no device's, as the counters name them."""


class Family(Value):
    """The numbers of one metric."""

    about: About
    samples: dict[tuple[str, ...], float]
    """By the values of its labels: no two of them are alike, or a whole scrape would be refused."""


class _Numbers:
    """The numbers of all metrics of one root, as they are gathered."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.families = {about: Family(about, {}) for about in ALL}

    def add(self, about: About, labels: tuple[str, ...], value: float) -> None:
        """Add a number to what is known of a metric; ``labels`` are the values behind that of ``root``.

        Names that others have chosen are shown as on a terminal: who reads the text may be one.
        """
        whole = tuple(map(printable, (self.root, *labels)))
        samples = self.families[about].samples
        samples[whole] = samples.get(whole, 0) + value


def families(root: str, environ: Mapping[str, str], hosts: Hosts = "own") -> list[Family]:
    """All metrics of a root that have a number. ``environ`` has the settings in force, which say the limit.

    What makes no sense in the root counts as nothing.

    Raises:
        OSError: the directory of the counters is there, and cannot be read now. Zeros in their place would be counters
            that have begun anew, and all that was ever counted an increase of the moment after.
    """
    numbers = _Numbers(root)
    numbers.add(VERSION, (host_label(), __version__), 1)
    for (host, directory), values in _counted(root, hosts).items():
        _add_counters(numbers, host, directory, values)
    _add_store(numbers, environ)
    _add_findings(numbers, hosts)
    return [family for family in numbers.families.values() if family.samples]


def _counted(root: str, hosts: Hosts) -> dict[tuple[str, str], Values]:
    """The counters by host and directory.

    A provisioned directory of this host is there from the first, with zeros: of a counter that begins at 5, Prometheus
    would not see the 5.
    """
    own = host_label()
    sums: dict[tuple[str, str], Values] = {(own, REMOTE): {}}
    for name, _ in device_directories(root):
        sums.setdefault((own, _directory(name)), {})
    for where, values in readable_sums_of(root).items():
        if hosts == "own" and where.host != own:
            continue
        host = "others" if where.host == ANY_HOST else where.host
        total = sums.setdefault((host, _directory(where.device)), {})
        for name, value in values.items():
            total[name] = total.get(name, 0) + value
    return sums


def _directory(device: str) -> str:
    """How a device directory is called in metrics: all that are outside the root are one, as each job may have another.

    A fold puts them together too, after 14 days (`store.counts.bounded`), so that no number gets less then.
    """
    is_known = is_device_directory_name(device) or device in (*_NAMED, REMOTE)
    return device if is_known else ELSEWHERE


def _add_counters(numbers: _Numbers, host: str, directory: str, values: Values) -> None:
    for about, name in OF_HOST:
        numbers.add(about, (host,), values.get(name, 0))
    if directory == REMOTE:
        return  # nothing was launched there
    labels = (host, directory)
    for name, level in levels(values).items():
        if name == "compiled":
            continue  # those are of the directory
        of_level = (*labels, name)
        numbers.add(HITS, of_level, level.hits)
        numbers.add(MISSES, of_level, level.misses or 0)
        if name in ("fallback", "remote"):
            numbers.add(LEVEL_ERRORS, of_level, level.errors or 0)
            numbers.add(LEVEL_SECONDS, of_level, level.seconds or 0)
            numbers.add(LEVEL_BYTES, of_level, level.bytes or 0)
    for about, name in OF_DIRECTORY:
        numbers.add(about, labels, values.get(name, 0))


def _add_store(numbers: _Numbers, environ: Mapping[str, str]) -> None:
    size_bytes = total_bytes(numbers.root)
    if size_bytes is not None:
        numbers.add(STORE_BYTES, (), size_bytes)
    with suppress(OSError):  # the disk does not answer: it may, the next time
        limit_bytes = max_size_bytes(numbers.root, environ)
        if limit_bytes:
            numbers.add(STORE_LIMIT_BYTES, (), limit_bytes)


def _add_findings(numbers: _Numbers, hosts: Hosts) -> None:
    own = host_label()
    for found in last_findings(numbers.root):
        if hosts == "own" and found.host != own:
            continue
        numbers.add(EXAMINED, (found.host, found.command), found.at)
        for (level, code), count in found.counts.items():
            numbers.add(FINDINGS, (found.host, found.command, level, code), count)


def names() -> Iterator[str]:
    """The name of every metric as queries have it, with ``_total`` behind counters."""
    for about in ALL:
        yield f"{about.name}_total" if about.kind == "counter" else about.name
