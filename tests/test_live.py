from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.compiling import OTHER, compiling, lock_of, waiters
from support.processes import until

from gpucache.layout import paths
from gpucache.store import size
from gpucache.store.stats import Stats
from gpucache.watch import live
from gpucache.watch.live import Watch

TRUSTED = "alice:" + "A" * 43 + "="


class Clock:
    """The clock of looks, put on by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(live, "time", made)
    return made


@pytest.fixture
def made(root: Path) -> Path:
    for name in ("0", "1", "2", "10"):
        (root / "triton" / name).mkdir(parents=True)
    lock_of(root)
    return root


@pytest.fixture
def counting(made: Path) -> Iterator[Stats]:
    counters = Stats(paths.ours(str(made), "stats"), "1")
    yield counters
    counters.leave()


def test_rates_are_what_was_counted_between_two_looks(
    made: Path, counting: Stats, clock: Clock
) -> None:
    watch = Watch(str(made), {})
    counting.add("hits", 100, now=True)
    first = watch.look()
    assert first.window_s == 0
    assert set(first.all.rates.values()) == {0.0}
    counting.add("hits", 20, now=True)
    counting.add("shared_hits", 6, now=True)
    counting.add("remote_hits", 2, now=True)
    counting.add("misses", 1, now=True)
    counting.add("errors_degraded", 3, now=True)
    clock.now += 2
    second = watch.look()
    by_name = {one.directory: one for one in second.devices}
    assert second.window_s == 2
    assert by_name["1"].rates == {
        "own": 10.0,
        "store": 2.0,
        "fallback": 0.0,
        "remote": 1.0,
        "compiled": 0.5,
    }
    assert by_name["1"].degraded == 1.5
    assert set(by_name["0"].rates.values()) == {0.0}
    assert second.all.rates == by_name["1"].rates


def test_rates_are_those_of_the_last_ten_seconds(made: Path, counting: Stats, clock: Clock) -> None:
    watch = Watch(str(made), {})
    watch.look()
    counting.add("hits", 1000, now=True)
    for _ in range(5):
        clock.now += 2
        seen = watch.look()
    assert (seen.window_s, seen.all.rates["own"]) == (10.0, 100.0)
    clock.now += 2
    seen = watch.look()
    assert (seen.window_s, seen.all.rates["own"]) == (10.0, 0.0)


def test_device_directories_come_in_the_order_of_their_numbers(made: Path) -> None:
    (made / "triton/1.2").mkdir()
    seen = Watch(str(made), {}).look()
    assert [one.directory for one in seen.devices] == ["0", "1", "1.2", "2", "10"]


def test_a_directory_elsewhere_is_shown_while_this_host_counts_there(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Stats(paths.ours(str(made), "stats"), "/home/me/cache")
    elsewhere.add("hits", 1, now=True)
    names = [one.directory for one in Watch(str(made), {}).look().devices]
    assert names == ["0", "1", "2", "10", "/home/me/cache"]
    three_hours_on = live.time.time() + 3 * 3600
    monkeypatch.setattr(live.time, "time", lambda: three_hours_on)
    names = [one.directory for one in Watch(str(made), {}).look().devices]
    assert names == ["0", "1", "2", "10"]
    elsewhere.leave()


def test_what_other_hosts_count_is_not_of_this_node(
    made: Path, counting: Stats, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "host_label", lambda: "another")
    watch = Watch(str(made), {})
    watch.look()
    counting.add("hits", 100, now=True)
    clock.now += 2
    assert watch.look().all.rates["own"] == 0.0


def test_a_compile_stands_with_its_device_and_with_those_who_wait(made: Path) -> None:
    watch = Watch(str(made), {})
    with compiling(made, "matmul", "2"), compiling(made, "norm", "warm", OTHER), waiters(made, 2):
        until(lambda: {one.waiting for one in watch.look().all.compiles} == {0, 2})
        seen = watch.look()
    by_name = {one.directory: [each.kernel for each in one.compiles] for one in seen.devices}
    assert by_name == {"0": [], "1": [], "2": ["matmul"], "10": [], "warm": ["norm"]}


def test_the_store_is_told_with_its_limit_and_what_is_evicted(
    made: Path, counting: Stats, clock: Clock
) -> None:
    watch = Watch(str(made), {"GPUCACHE_MAX_SIZE": "1GiB"})
    assert watch.look().store.size_bytes is None
    size.set_total(str(made), 5000)
    counting.add("evicted", 4, now=True)
    counting.add("evicted_bytes", 4096, now=True)
    clock.now += 2
    store = watch.look().store
    assert (store.size_bytes, store.limit_bytes) == (5000, 2**30)
    assert (store.evicted, store.evicted_bytes) == (2.0, 2048.0)


def test_a_root_that_is_gone_or_has_nothing_is_looked_at_all_the_same(root: Path) -> None:
    seen = Watch(str(root), {}).look()
    assert (seen.devices, seen.all.compiles, seen.store.size_bytes) == ((), (), None)


def test_a_look_writes_nothing(made: Path, counting: Stats) -> None:
    counting.add("hits", 1, now=True)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))]
    environ = {"GPUCACHE_REMOTE": "redis://nowhere/0?mode=write", "GPUCACHE_TRUST_KEYS": TRUSTED}
    Watch(str(made), environ).look()
    assert [(path, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))] == before
    assert os.path.isdir(made)
