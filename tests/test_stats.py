from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.processes import PATIENCE_S, SPAWN

from gpucache.layout import paths
from gpucache.store import counter_files, counter_fold, counts, stats
from gpucache.store.counter_fold import fold
from gpucache.store.levels import levels
from gpucache.store.stats import Stats, hours, totals


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where the counters below the root `tmp_path` are."""
    return paths.ours(str(tmp_path), "stats")


def files(directory: str) -> list[str]:
    """The names of the files of counters: of processes, and folded ones."""
    return sorted(name for name in os.listdir(directory) if name.endswith((".counts", ".folded")))


def is_folded(directory: str) -> bool:
    """Whether there is one folded file, and nothing else."""
    (name,) = os.listdir(directory)
    return name.endswith(".folded")


COUNTING = """
import os, sys
from gpucache.store.stats import Stats
counters = Stats(sys.argv[1], "gpu0")
counters.add("hits", 5, now=True)
counters.add("hits", 100)
print("counted", flush=True)
if sys.stdin.readline() == "leave\\n":
    os._exit(0)
"""


@contextmanager
def counting(directory: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has 5 hits on disk and 100 more in memory."""
    command = [sys.executable, "-c", COUNTING, directory]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "counted\n"
            yield process
        finally:
            process.kill()


def _count_and_end_together(directory: str, barrier: Barrier) -> None:
    counters = Stats(directory, "gpu0")
    for _ in range(1000):
        counters.add("hits")
    counters.add("waited_s", 0.5)
    barrier.wait(PATIENCE_S)


class TestCounting:
    def test_the_sums_are_told_per_device(self, tmp_path, directory):
        for device, hits in (("gpu0", 2), ("gpu1", 3), ("gpu0", 5)):
            counters = Stats(directory, device)
            counters.add("hits", hits)
            counters.add("saved_s", 0.25)
            counters.flush()
        assert totals(str(tmp_path)) == {
            "gpu0": {"hits": 7, "saved_s": 0.5},
            "gpu1": {"hits": 3, "saved_s": 0.25},
        }

    @pytest.mark.parametrize("name", ["remote_hits", "fallback_hits"])
    def test_what_the_store_gave_by_itself_is_never_less_while_a_remote_brings_entries(
        self, tmp_path, directory, name
    ):
        counters = Stats(directory, "gpu0")
        of_the_store = []
        for count in (
            lambda: counters.add_shared(now=True),
            lambda: counters.brought(name),
            lambda: counters.add("remote_s", 0.5, now=True),
            lambda: counters.add_shared(now=True),
            lambda: counters.add_shared(now=True),
        ):
            count()
            of_the_store.append(levels(totals(str(tmp_path))["gpu0"])["store"].hits)
        assert of_the_store == [1, 1, 1, 1, 2]
        assert totals(str(tmp_path))["gpu0"][name] == 1

    def test_threads_lose_no_count(self, tmp_path, directory):
        counters, before = Stats(directory, "gpu0"), sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [
                threading.Thread(target=lambda: [counters.add("hits") for _ in range(20_000)])
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
        finally:
            sys.setswitchinterval(before)
        counters.flush()
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 160_000}}

    def test_without_a_directory_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        counters = Stats(None, "gpu0")
        counters.add("hits", now=True)
        counters.flush()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "device",
        ["d" * 255, "\u00e9" * 127, "\ud800" * 85, 63 * "\U0001f600"],
        ids=["long", "wide", "undecodable", "widest"],
    )
    def test_a_text_that_gets_shorter_leaves_no_tail_of_the_longer_one(
        self, tmp_path, directory, device
    ):
        counters = Stats(directory, device)
        for name in (*counts.COUNTERS, *counts.SECONDS):
            counters.add(name, 0.1 + 0.2)
        counters.flush()
        for name in (*counts.COUNTERS, *counts.SECONDS):
            counters.add(name, 0.5 - (0.1 + 0.2))
        counters.flush()
        assert totals(str(tmp_path)) == {
            device: dict.fromkeys((*counts.COUNTERS, *counts.SECONDS), 0.5)
        }
        (name,) = files(directory)
        assert os.stat(f"{directory}/{name}").st_size == 2 * counter_files._SLOT

    def test_a_path_that_is_too_long_is_told_by_its_end_and_never_taken_for_another(
        self, tmp_path, directory
    ):
        for first in "ab":
            path = f"/{first}" + 15 * f"/{'x' * 250}" + "/cache"
            Stats(directory, path).add("hits", now=True)
        one, other = totals(str(tmp_path))
        assert one != other
        assert one.startswith("/...")
        assert one.endswith("/cache")

    def test_the_longest_of_all_fits(self, tmp_path, directory, monkeypatch):
        monkeypatch.setattr(paths, "host_name", lambda: "h" * 300)
        counters = Stats(directory, "\U0001f600" * 1000)
        for name in (*counts.COUNTERS, *counts.SECONDS):
            counters.add(name, 1e9 / 3)
        counters.flush()
        (values,) = totals(str(tmp_path)).values()
        names = (*counts.COUNTERS, *counts.SECONDS)
        assert values == pytest.approx(dict.fromkeys(names, 1e9 / 3), abs=1e-6)


class TestFlushing:
    def test_a_hit_soon_after_a_write_waits_for_the_next(self, tmp_path, directory, monkeypatch):
        monkeypatch.setattr(stats, "_FLUSH_S", PATIENCE_S)
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        counters.add("hits")
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}
        counters._flushed -= 2 * PATIENCE_S
        counters.add("hits")
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 3}}

    def test_a_miss_is_written_at_once(self, tmp_path, directory, monkeypatch):
        monkeypatch.setattr(stats, "_FLUSH_S", PATIENCE_S)
        counters = Stats(directory, "gpu0")
        for misses in (1, 2, 3):
            counters.add("misses", now=True)
            assert totals(str(tmp_path)) == {"gpu0": {"misses": misses}}

    def test_what_did_not_change_is_not_written_again(self, directory):
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        (name,) = files(directory)
        os.utime(f"{directory}/{name}", (0, 0))
        counters.flush()
        assert os.stat(f"{directory}/{name}").st_mtime == 0

    def test_who_counted_nothing_has_no_file(self, directory):
        Stats(directory, "gpu0").flush()
        assert not os.path.exists(directory)

    def test_processes_that_end_together_lose_nothing(self, tmp_path, directory):
        barrier = SPAWN.Barrier(8)
        workers = [
            SPAWN.Process(target=_count_and_end_together, args=(directory, barrier))
            for _ in range(8)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        assert [worker.exitcode for worker in workers] == [0] * 8
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 8000, "waited_s": 4.0}}
        assert len(files(directory)) < 8, "those who end fold what others have left"

    @pytest.mark.parametrize("how", ["killed", "os._exit"])
    def test_a_process_that_cannot_end_properly_loses_only_what_it_had_not_written(
        self, tmp_path, directory, how
    ):
        with counting(directory) as process:
            if how == "killed":
                process.kill()
                process.wait(PATIENCE_S)
            else:
                process.communicate("leave\n", timeout=PATIENCE_S)
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 5}}

    def test_a_disk_that_refuses_costs_only_the_counters_until_it_takes_them(
        self, tmp_path, directory
    ):
        Path(paths.ours(str(tmp_path))).parent.mkdir()
        in_the_way = Path(paths.ours(str(tmp_path)))
        in_the_way.write_text("")
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        counters.flush()
        assert totals(str(tmp_path)) == {}
        in_the_way.unlink()
        counters.flush()
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}

    @pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_where_there_are_no_locks_a_file_is_folded_by_its_age(
        self, tmp_path, directory, monkeypatch, refusal
    ):
        def refuse(*_: int) -> None:
            raise OSError(refusal, os.strerror(refusal))

        monkeypatch.setattr(fcntl, "flock", refuse)
        for _ in range(2):
            counters = Stats(directory, "gpu0")
            counters.add("hits", now=True)
            counters.leave()
        assert fold(str(tmp_path)) == 0
        for name in files(directory):
            os.utime(f"{directory}/{name}", (0, 0))
        assert fold(str(tmp_path)) == 2
        assert is_folded(directory)
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 2}}

    def test_a_lock_that_is_refused_costs_neither_descriptors_nor_files(
        self, directory, monkeypatch
    ):
        def refuse(*_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        counters, before = Stats(directory, "gpu0"), len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            for _ in range(3):
                counters.add("hits", now=True)
        assert len(os.listdir("/proc/self/fd")) == before
        assert os.listdir(directory) == []

    def test_a_write_that_is_cut_short_leaves_the_counters_before(
        self, tmp_path, directory, monkeypatch
    ):
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        whole = os.pwrite

        def cut(fd: int, data: bytes, offset: int) -> int:
            return whole(fd, data[:40], offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", cut)
            for _ in range(3):
                counters.add("hits", now=True)
                assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}
        counters.flush()
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 4}}

    @pytest.mark.parametrize("swept", ["file", "directory"])
    def test_a_cleaner_that_sweeps_the_file_costs_what_was_in_it_alone(
        self, tmp_path, directory, swept
    ):
        counters = Stats(directory, "gpu0")
        counters.add("hits", 3, now=True)
        if swept == "file":
            (name,) = files(directory)
            os.unlink(f"{directory}/{name}")
        else:
            shutil.rmtree(directory)
        counters.add("hits", 4, now=True)
        counters.add("misses", now=True)
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 4, "misses": 1}}

    def test_a_signal_handler_may_count_at_any_moment_of_a_writing(
        self, tmp_path, directory, monkeypatch
    ):
        """A handler that launches a kernel counts, and finds the writing of its own thread half done."""
        counters = Stats(directory, "gpu0")
        real = os.lstat, os.rename, os.pwrite, os.close
        nested, handling = 0, False

        def interrupted(call: Callable[..., object]) -> Callable[..., object]:
            def called(*args: Any, **named: Any) -> object:
                nonlocal nested, handling
                if not handling:
                    nested, handling = nested + 1, True
                    counters.add("misses", now=True)
                    counters.leave()
                    handling = False
                return call(*args, **named)

            return called

        with monkeypatch.context() as patch:
            for call in real:
                patch.setattr(os, call.__name__, interrupted(call))
            for _ in range(3):
                counters.add("hits", now=True)
            counters.leave()
            counters.add("hits", now=True)
        counters.flush()
        assert nested > 10
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 4, "misses": nested}}


class TestHours:
    @pytest.fixture
    def clock(self, monkeypatch):
        """Sets the hour that it is."""

        def turn(hour: int) -> None:
            monkeypatch.setattr(stats, "this_hour", lambda: hour)
            monkeypatch.setattr(counter_fold, "this_hour", lambda: hour)

        return turn

    def test_a_process_of_days_has_one_small_file_and_its_hours_are_known(
        self, tmp_path, directory, clock
    ):
        clock(1000)
        counters = Stats(directory, "gpu0")
        for hour in (1000, 1001, 1001, 1007, 1100):
            clock(hour)
            counters.add("misses", now=True)
        assert totals(str(tmp_path)) == {"gpu0": {"misses": 5}}
        found = {where.hour: values["misses"] for where, values in hours(str(tmp_path)).items()}
        assert found == {1000: 1, 1001: 2, 1007: 1, 1100: 1}
        own = [name for name in files(directory) if name.endswith(".counts")]
        assert len(own) == 1
        assert os.stat(f"{directory}/{own[0]}").st_size <= 2 * counter_files._SLOT
        assert len(files(directory)) == 2, "what was left was folded"

    def test_what_was_not_written_yet_belongs_to_the_hour_in_which_it_was_counted(
        self, tmp_path, directory, monkeypatch, clock
    ):
        """A program that has its kernels counts nothing more for days."""
        clock(1000)
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        counters.add("hits", 99)
        clock(1072)
        counters.add("misses", now=True)
        found = {where.hour: values for where, values in hours(str(tmp_path)).items()}
        assert found == {1000: {"hits": 100}, 1072: {"misses": 1}}

    def test_what_the_disk_refused_is_counted_in_the_hour_in_which_the_disk_takes_it(
        self, tmp_path, directory, monkeypatch, clock
    ):
        clock(1000)
        counters = Stats(directory, "gpu0")
        counters.add("hits", 2, now=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse_to_write)
            counters.add("hits", 3, now=True)
            clock(1001)
            counters.add("hits", 4, now=True)
        counters.flush()
        found = {where.hour: values["hits"] for where, values in hours(str(tmp_path)).items()}
        assert found == {1000: 2, 1001: 7}

    def test_only_those_that_end_after_a_time_are_told(self, tmp_path, directory, clock):
        for hour in (1000, 1001, 1002):
            clock(hour)
            counters = Stats(directory, "gpu0")
            counters.add("hits", now=True)
            counters.leave()
        since = 1001 * counts.HOUR_S + 1.0
        assert [where.hour for where in hours(str(tmp_path), since)] == [1001, 1002]

    def test_the_host_is_told(self, directory, tmp_path, monkeypatch):
        for host in ("node1", "pod-a/b ~c"):
            monkeypatch.setattr(paths, "host_name", lambda host=host: host)
            Stats(directory, "gpu0").add("hits", now=True)
        assert {where.host for where in hours(str(tmp_path))} == {"node1", "pod-a_b__c"}


def refuse_to_write(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FORKING = """
import os, sys
from gpucache.store.counter_fold import fold
from gpucache.store.stats import Stats
root, directory = sys.argv[1:]
counters = Stats(directory, "gpu0")
counters.add("hits", 5, now=True)
counters.add("hits", 10)
child = os.fork()
if child == 0:
    assert fold(root) == 0  # the parent lives
    counters.add("hits", 100)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert fold(root) == 0  # the child has folded its own at its end
counters.add("hits", 1000)
"""


class TestFork:
    def test_the_child_starts_from_nothing_and_its_parent_goes_on(
        self, tmp_path, directory, python
    ):
        ended = python(FORKING, tmp_path, directory)
        assert ended.returncode == 0, ended.stderr
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1115}}
        assert is_folded(directory)


class TestCommand:
    def test_two_directories_with_one_base_name_are_two_rows(self, tmp_path, directory, gpucache):
        for device in ("/a/cache", "/b/cache", "3"):
            Stats(directory, device).add("hits", now=True)
        said = json.loads(gpucache("stats", "--json", "--root", tmp_path).stdout)
        assert {name: row["hits"] for name, row in said["devices"].items()} == {
            "/a/cache": 1,
            "/b/cache": 1,
            "3": 1,
        }
        assert said["all"]["hits"] == 3
        lines = gpucache("stats", "--root", tmp_path).stdout.splitlines()
        assert [line.split("\t")[:2] for line in lines] == [
            ["/a/cache", "1"],
            ["/b/cache", "1"],
            ["3", "1"],
            ["all", "3"],
        ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(min_size=1, max_size=300).filter(lambda text: "/" not in text),
    st.dictionaries(st.sampled_from(counts.COUNTERS), st.integers(0, 10**9 - 1), min_size=1),
    st.dictionaries(st.sampled_from(counts.SECONDS), st.floats()),
)
def test_whatever_is_counted_is_read(tmp_path_factory, device, numbers, seconds):
    root = str(tmp_path_factory.mktemp("root"))
    counters = Stats(paths.ours(root, "stats"), device)
    for name, amount in {**numbers, **seconds}.items():
        counters.add(name, amount)
    counters.flush()
    (values,) = totals(root).values() or [{}]
    for name, amount in numbers.items():
        assert values.get(name, 0) == amount
    for name, amount in seconds.items():
        expected = amount if 0 <= amount < stats.MOST_AT_ONCE else 0
        assert values.get(name, 0) == pytest.approx(expected, abs=1e-6), "to the microsecond"
