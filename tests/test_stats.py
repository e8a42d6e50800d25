from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, SPAWN

from gpucache.disk.node import node_id
from gpucache.layout import paths
from gpucache.store import stats
from gpucache.store.stats import Stats, fold, totals


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where the counters below the root `tmp_path` are."""
    return paths.ours(str(tmp_path), "stats")


def files(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.endswith(".json"))


def dies(counters: Stats) -> None:
    """Let go of the file as the process's death would."""
    counters.forget()


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


def _live_and_die(directory: str, lives: int) -> None:
    for _ in range(lives):
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        counters.add("hits", now=True)
        dies(counters)


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
        "device", ["d" * 255, "\u00e9" * 127, "\ud800" * 85], ids=["long", "wide", "undecodable"]
    )
    def test_a_text_that_gets_shorter_leaves_no_tail_of_the_longer_one(
        self, tmp_path, directory, device
    ):
        counters = Stats(directory, device)
        for name in (*stats.COUNTERS, *stats.SECONDS):
            counters.add(name, 0.1 + 0.2)
        counters.flush()
        for name in (*stats.COUNTERS, *stats.SECONDS):
            counters.add(name, 0.5 - (0.1 + 0.2))
        counters.flush()
        assert totals(str(tmp_path)) == {
            device: dict.fromkeys((*stats.COUNTERS, *stats.SECONDS), 0.5)
        }
        assert {os.stat(f"{directory}/{name}").st_size for name in files(directory)} == {
            stats._LENGTH
        }


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
        assert len(files(directory)) == 8

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

    def test_a_disk_without_locks_costs_neither_descriptors_nor_files(self, directory, monkeypatch):
        def refuse(*_: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        counters, before = Stats(directory, "gpu0"), len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            for _ in range(3):
                counters.add("hits", now=True)
        assert len(os.listdir("/proc/self/fd")) == before
        assert os.listdir(directory) == []


FORKING = """
import os, sys
from gpucache.store.stats import Stats, fold
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
assert fold(root) == 1  # the child does not
counters.add("hits", 1000)
"""


class TestFork:
    def test_the_child_starts_from_nothing_and_its_parent_goes_on(
        self, tmp_path, directory, python
    ):
        ended = python(FORKING, tmp_path, directory)
        assert ended.returncode == 0, ended.stderr
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1115}}
        assert len(files(directory)) == 2, "the parent's own file and the folded one"


class TestFold:
    def test_the_dead_become_one_file_and_the_sums_stay(self, tmp_path, directory):
        for turn in range(3):
            for device in ("gpu0", "gpu1"):
                counters = Stats(directory, device)
                counters.add("hits", turn + 1)
                counters.add("compiled_s", 0.5, now=True)
                dies(counters)
            before = totals(str(tmp_path))
            assert fold(str(tmp_path)) == 2
            assert totals(str(tmp_path)) == before
            assert files(directory) == ["folded.json"]
        assert before == {
            "gpu0": {"hits": 6, "compiled_s": 1.5},
            "gpu1": {"hits": 6, "compiled_s": 1.5},
        }
        assert fold(str(tmp_path)) == 0

    def test_the_file_of_a_living_process_stays_until_it_is_killed(self, tmp_path, directory):
        with counting(directory) as process:
            assert fold(str(tmp_path)) == 0
            assert len(files(directory)) == 1
            process.kill()
            process.wait(PATIENCE_S)
            assert fold(str(tmp_path)) == 1
        assert files(directory) == ["folded.json"]
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 5}}

    def test_a_process_whose_file_is_new_is_not_folded_away(self, tmp_path, directory, monkeypatch):
        """Between making its file and locking it, a process looks dead."""
        real = fcntl.flock

        def flock_after_a_fold(fd: int, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", real)
            assert fold(str(tmp_path)) == 0
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock_after_a_fold)
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}

    def test_beside_processes_that_come_and_go_the_totals_stay_exact(self, tmp_path, directory):
        workers = [SPAWN.Process(target=_live_and_die, args=(directory, 150)) for _ in range(4)]
        for worker in workers:
            worker.start()
        last, end = 0.0, time.monotonic() + PATIENCE_S
        while any(worker.is_alive() for worker in workers):
            assert time.monotonic() < end
            fold(str(tmp_path))
            now = totals(str(tmp_path)).get("gpu0", {}).get("hits", 0)
            assert now >= last, "a reader never sees less"
            last = now
        for worker in workers:
            worker.join(PATIENCE_S)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1200}}
        fold(str(tmp_path))
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1200}}
        assert files(directory) == ["folded.json"]

    def test_one_that_the_disk_refuses_changes_nothing(self, tmp_path, directory, monkeypatch):
        def refuse(*_: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        dies(counters)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            with pytest.raises(OSError, match="No space"):
                fold(str(tmp_path))
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}
        assert fold(str(tmp_path)) == 1
        assert sorted(os.listdir(directory)) == ["folded.json", "lock"]

    def test_without_counters_there_is_nothing_to_do(self, tmp_path):
        assert fold(str(tmp_path)) == 0
        assert totals(str(tmp_path)) == {}
        assert list(tmp_path.iterdir()) == []


GARBAGE = {
    "empty": b"",
    "torn": b'{"device": "gpu0", "values": {"hi',
    "not text": b"\xff\xfe\x00",
    "number": b"5",
    "null": b"null",
    "list of numbers": b"[1, 2]",
    "other object": b'{"a": 1}',
    "device that is none": b'{"device": 7, "values": {"hits": 1}}',
    "values that are none": b'{"device": "gpu0", "values": [1]}',
    "unknown counters": b'{"device": "gpu0", "values": {"bites": 1, "hits": "many"}}',
}


class TestGarbage:
    @pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
    def test_it_is_passed_over_and_folded_away(self, tmp_path, directory, text):
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        Path(directory, f"{node_id()}.node.1.abc.json").write_bytes(text)
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}
        assert fold(str(tmp_path)) == 1
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 1}}

    def test_a_folded_file_that_is_garbage_does_not_stop_the_next_fold(self, tmp_path, directory):
        counters = Stats(directory, "gpu0")
        counters.add("hits", now=True)
        dies(counters)
        Path(directory, "folded.json").write_text("{")
        assert fold(str(tmp_path)) == 1
        found = json.loads(Path(directory, "folded.json").read_text())
        assert found == [{"device": "gpu0", "values": {"hits": 1}}]


class TestSumming:
    """`totals` is asked by whoever only looks."""

    @pytest.mark.parametrize("folded", [False, True], ids=["never-folded", "folded"])
    def test_writes_nothing(self, tmp_path, directory, folded):
        for _ in range(2):
            counters = Stats(directory, "gpu0")
            counters.add("hits", now=True)
            dies(counters)
            if folded:
                fold(str(tmp_path))
        before = {
            path: (path.lstat().st_ino, path.lstat().st_mtime_ns)
            for path in [tmp_path, *tmp_path.rglob("*")]
        }
        assert totals(str(tmp_path)) == {"gpu0": {"hits": 2}}
        assert {
            path: (path.lstat().st_ino, path.lstat().st_mtime_ns)
            for path in [tmp_path, *tmp_path.rglob("*")]
        } == before

    @pytest.mark.parametrize("folded", [False, True], ids=["never-folded", "folded"])
    def test_a_root_that_is_read_only_is_enough(self, tmp_path, mount, folded):
        root = mount(tmp_path / "root", "-t", "tmpfs", "none")
        counters = Stats(paths.ours(str(root), "stats"), "gpu0")
        counters.add("hits", now=True)
        dies(counters)
        if folded:
            fold(str(root))
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        assert totals(str(root)) == {"gpu0": {"hits": 1}}


class TestAnotherNode:
    def test_its_counters_are_summed_and_folded_only_after_a_day_of_silence(self, tmp_path):
        """Its lock may look free from here."""
        directory = Path(paths.ours(str(tmp_path), "stats"))
        directory.mkdir(parents=True)
        theirs = directory / "0badcafe.node.1.abc.json"
        theirs.write_text(json.dumps({"device": "0", "values": {"hits": 3}}))
        assert fold(str(tmp_path)) == 0
        assert totals(str(tmp_path)) == {"0": {"hits": 3}}
        long_ago = time.time() - 87000
        os.utime(theirs, (long_ago, long_ago))
        assert fold(str(tmp_path)) == 1
        assert totals(str(tmp_path)) == {"0": {"hits": 3}}
        assert not theirs.exists()

    def test_a_process_that_was_folded_while_it_was_silent_counts_on_and_nothing_twice(
        self, tmp_path
    ):
        directory = paths.ours(str(tmp_path), "stats")
        counters = Stats(directory, "0")
        counters.add("hits", 3, now=True)
        (file,) = Path(directory).glob("*.json")
        theirs = file.with_name(f"0badcafe{file.name[8:]}")  # as another node sees it
        os.rename(file, theirs)
        os.utime(theirs, (0, 0))
        assert fold(str(tmp_path)) == 1
        counters.add("hits", 2, now=True)
        counters.add("misses", 1, now=True)
        assert totals(str(tmp_path)) == {"0": {"hits": 5, "misses": 1}}
