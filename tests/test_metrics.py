"""`gpucache metrics`: each number is what was counted, no counter ever falls, and Prometheus' own programs read it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.metrics import Series, count, counted_root, of, seen, series
from support.processes import PATIENCE_S

from gpucache import __version__
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.store import counter_files, counter_fold, counts, stats
from gpucache.store.counter_files import host_label
from gpucache.store.last_findings import note_findings
from gpucache.store.size import set_total
from gpucache.watch.metrics import exposition
from gpucache.watch.metrics.families import families


@pytest.fixture
def root(root: Path) -> Path:
    return counted_root(root)


class TestUnreadable:
    @pytest.fixture(params=[errno.EACCES, errno.ESTALE, errno.EIO])
    def why(self, request, monkeypatch) -> str:
        """The directory of the counters cannot be opened, for this reason."""
        why = os.strerror(request.param)

        def refuse(root: str) -> None:
            raise OSError(request.param, why)

        monkeypatch.setattr(stats, "opened", refuse)
        return why

    def test_counters_that_cannot_be_read_have_not_begun_anew(self, root, why):
        with pytest.raises(OSError, match=re.escape(why)):
            seen(root)

    def test_a_file_for_node_exporter_stays_as_it_was_and_the_command_says_why(
        self, here, root, why, tmp_path
    ):
        file = tmp_path / "gpucache.prom"
        file.write_text("before")
        done = here("metrics", "--root", root, "--textfile", file)
        assert (done.code, file.read_text()) == (1, "before")
        first = done.err.splitlines()[0]
        assert first == f"error: could not look at {root}/gpucache/v1/stats: {why}"


class TestNumbers:
    def test_each_counter_is_in_one_metric_by_host_directory_and_level(self, root):
        for number, name in enumerate((*counts.COUNTERS, *counts.SECONDS), 1):
            count(root, "1", **{name: 1000 * number})
        found = seen(root)
        raw = stats.totals(str(root))["1"]
        expected = {
            ("hits", "own"): raw["hits"],
            ("hits", "store"): max(
                0, raw["shared_hits"] - raw["fallback_hits"] - raw["remote_hits"]
            ),
            ("hits", "fallback"): raw["fallback_hits"],
            ("hits", "remote"): raw["remote_hits"],
            ("misses", "own"): raw["shared_hits"] + raw["misses"],
            ("misses", "store"): raw["misses"] + raw["fallback_hits"] + raw["remote_hits"],
            ("misses", "fallback"): raw["fallback_misses"],
            ("misses", "remote"): raw["remote_misses"],
            ("level_errors", "fallback"): raw["fallback_errors"],
            ("level_errors", "remote"): raw["remote_errors"] + raw["remote_bad"],
            ("level_seconds", "fallback"): raw["fallback_s"],
            ("level_seconds", "remote"): raw["remote_s"],
            ("level_bytes", "fallback"): raw["fallback_bytes"],
            ("level_bytes", "remote"): raw["remote_bytes"],
        }
        here = {"root": str(root), "host": host_label()}
        for (name, level), value in expected.items():
            labels = {**here, "directory": "1", "level": level}
            assert of(found, f"gpucache_{name}_total", **labels) == value, (name, level)
        for name, counter in {
            "compiles": "misses",
            "compile_seconds": "compiled_s",
            "saved_seconds": "saved_s",
            "waits": "waits",
            "wait_seconds": "waited_s",
            "degraded": "errors_degraded",
            "refused": "remote_bad",
            "evictions": "evicted",
            "evicted_bytes": "evicted_bytes",
        }.items():
            labels = {**here, "directory": "1"}
            assert of(found, f"gpucache_{name}_total", **labels) == raw[counter], name
        for name, counter in {
            "pulled_entries": "pulled",
            "pulled_bytes": "pulled_bytes",
            "pull_seconds": "pull_s",
            "pushed_entries": "pushed",
            "push_errors": "push_errors",
            "pushed_bytes": "pushed_bytes",
            "push_seconds": "push_s",
        }.items():
            assert of(found, f"gpucache_{name}_total", **here) == raw[counter], name

    def test_what_was_pulled_for_no_device_is_the_hosts(self, root):
        count(root, stats.REMOTE, pulled=3, pulled_bytes=9)
        found = seen(root)
        assert of(found, "gpucache_pulled_entries_total", host=host_label()) == 3
        assert not [has for _, has in found if ("directory", "remote") in has]

    def test_a_directory_in_which_nothing_was_counted_is_there_with_zeros(self, root):
        """Prometheus sees no increase of a counter that begins at 5."""
        assert of(seen(root), "gpucache_hits_total", directory="1", level="own") == 0

    def test_all_directories_outside_the_root_are_one(self, root):
        count(root, "/job/1", hits=3)
        count(root, "/job/2", hits=4)
        assert of(seen(root), "gpucache_hits_total", directory="elsewhere") == 7

    def test_the_store_is_told_by_its_kept_size_and_is_not_walked(self, root, monkeypatch):
        set_total(str(root), 12_345)
        looked_at: list[str] = []
        for name in ("scandir", "listdir", "open"):
            real = getattr(os, name)

            def spied(path, *words, real=real, **more):
                looked_at.append(str(path))
                return real(path, *words, **more)

            monkeypatch.setattr(os, name, spied)
        found = series(exposition.text(families(str(root), {"GPUCACHE_MAX_SIZE": "1MB"})).decode())
        monkeypatch.undo()
        assert of(found, "gpucache_store_bytes", root=str(root)) == 12_345
        assert of(found, "gpucache_store_limit_bytes", root=str(root)) == 1_000_000
        assert [path for path in looked_at if "/store" in path] == []
        assert any(path.endswith("/stats/size") for path in looked_at)

    def test_a_store_that_nobody_counted_or_limits_has_no_number(self, root):
        found = exposition.text(families(str(root), {"GPUCACHE_MAX_SIZE": "0"})).decode()
        assert "gpucache_store_" not in found

    def test_of_two_files_that_tell_of_one_host_the_later_counts(self, root):
        note_findings(str(root), "doctor", [Finding("digest", "error", "subject", "fact", "fix")])
        directory = root / "gpucache/v1/stats"
        (kept,) = directory.glob("*.doctor.found")
        (directory / "a.doctor.found").write_bytes(kept.read_bytes())
        found = seen(root)
        assert of(found, "gpucache_examined_timestamp_seconds", command="doctor") <= time.time()
        assert of(found, "gpucache_findings", command="doctor") == 1

    def test_what_doctor_and_verify_have_found_is_there_by_code_with_its_time(self, root):
        before = time.time()
        finding = Finding("digest", "error", "subject", "fact", "fix")
        note_findings(str(root), "verify", [finding, finding])
        note_findings(str(root), "doctor", [])
        found = seen(root)
        labels = {"command": "verify", "level": "error", "code": "digest"}
        assert of(found, "gpucache_findings", **labels) == 2
        for command in ("doctor", "verify"):
            at = of(found, "gpucache_examined_timestamp_seconds", command=command)
            assert before <= at <= time.time()

    def test_it_says_which_gpucache_tells(self, root):
        assert of(seen(root), "gpucache_build_info", version=__version__) == 1

    @pytest.mark.parametrize("hosts", ["own", "all"])
    def test_of_other_hosts_nothing_is_told_unless_all_are_asked_for(
        self, root, hosts, monkeypatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stats, "host_label", lambda: "node7")
            count(root, hits=7)
        count(root, hits=1)
        found = seen(root, hosts)
        told = {dict(has).get("host") for _, has in found} - {None}
        assert told == {host_label()} | ({"node7"} if hosts == "all" else set())
        assert of(found, "gpucache_hits_total", level="own") == (8 if hosts == "all" else 1)


class TestHostileNames:
    @pytest.mark.parametrize(
        "name", ['a"} 1\nx{b="', "\x1b[2Jevil", "\ud800\udcff", "back\\slash", "{}", "\u202e", ""]
    )
    def test_a_host_of_any_name_leaves_the_text_whole(self, root, monkeypatch, name):
        monkeypatch.setattr(stats, "host_label", lambda: name)
        count(root, hits=3)
        text = exposition.text(families(str(root), {}, "all")).decode()
        assert of(series(text), "gpucache_hits_total", level="own") == 3
        assert [letter for letter in text if not letter.isprintable()] == ["\n"] * text.count("\n")

    def test_two_names_that_look_alike_are_one_series(self, root, monkeypatch):
        """Of two Prometheus would refuse the whole scrape."""
        for name in ("a\x1b", "a\\x1b"):
            with monkeypatch.context() as patch:
                patch.setattr(stats, "host_label", lambda name=name: name)
                count(root, hits=1)
        found = seen(root, "all")  # asserts that each is there once
        assert of(found, "gpucache_hits_total", host="a\\x1b", level="own") == 2

    def test_a_thousand_directories_of_any_name_are_one(self, root):
        for number in range(1000):
            (root / f"triton/x{number}").mkdir()
        assert len({dict(has).get("directory") for _, has in seen(root)}) <= 4


COUNTING = """
import sys
from gpucache.store.stats import Stats
counters = Stats(sys.argv[1], sys.argv[2])
counters.add_shared()  # else the store gave nothing by itself, and could give no less
while True:
    counters.add("hits", 3)
    counters.brought("remote_hits")
    counters.add("remote_s", 0.0123, now=True)
    counters.add_shared()
    counters.add("saved_s", 0.1, now=True)
"""


class TestNeverLess:
    @given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8), st.randoms())
    def test_a_sum_of_seconds_is_the_same_in_whatever_order_it_was_folded(self, values, order):
        """Else the last bit of a float made a counter fall, and Prometheus would add all of it once more."""
        where = counts.Where("h", "0")

        def summed(some: list[float]) -> counts.Sums:
            sums: counts.Sums = {}
            for value in some:
                counts.add(sums, where, {"saved_s": value})
            return sums

        whole = summed(values)
        order.shuffle(values)
        half = len(values) // 2
        folded = summed(values[:half])
        counts.add_all(folded, summed(values[half:]))
        assert folded == whole

    @pytest.mark.kills
    def test_beside_processes_that_are_killed_and_folds_no_counter_falls(self, root):
        directory = paths.ours(str(root), "stats")
        before = seen(root)
        looks = 0
        for _ in range(6):
            writers = [
                subprocess.Popen([sys.executable, "-c", COUNTING, directory, str(number)])
                for number in range(2)
            ]
            try:
                until = time.monotonic() + PATIENCE_S
                start = of(before, "gpucache_hits_total", level="own")
                # Some looks beside the writers, more beside the fold that follows.
                more = 0
                while more < 5:
                    assert time.monotonic() < until
                    now = seen(root)
                    assert_no_less(before, now)
                    more += of(now, "gpucache_hits_total", level="own") > start
                    before, looks = now, looks + 1
            finally:
                for writer in writers:
                    writer.kill()
                    writer.wait()
            folding = threading.Thread(target=counter_fold.fold, args=(str(root),))
            folding.start()
            while folding.is_alive() or looks % 5:
                now = seen(root)
                assert_no_less(before, now)
                before, looks = now, looks + 1
            folding.join()
        (name,) = [name for name in os.listdir(directory) if name.endswith(".folded")]
        assert name
        assert_no_less(before, seen(root))
        assert of(before, "gpucache_saved_seconds_total") > 0

    def test_after_hours_have_gone_into_one_sum_nothing_is_less(self, root, monkeypatch):
        hour = counts.this_hour()
        for ago in (400, 20, 0):
            with monkeypatch.context() as patch:
                patch.setattr(stats, "this_hour", lambda ago=ago: hour - ago)
                count(root, hits=5, saved_s=0.1)
                count(root, "/outside", hits=5)
        for counters in stats._all:
            counters.leave()
        before = seen(root)
        monkeypatch.setattr(counter_files, "_SUMS_BYTES", 110 + len(host_label()))
        counter_fold.fold(str(root))
        assert {where.hour for where in stats.sums_of(str(root))} == {counts.ANY_TIME}
        assert_no_less(before, seen(root))

    def test_a_host_that_was_silent_for_14_days_is_others_and_begins_anew(self, root, monkeypatch):
        """To Prometheus that is a restart of its counters, of which it loses nothing."""
        hour = counts.this_hour()
        with monkeypatch.context() as patch:
            patch.setattr(stats, "host_label", lambda: "node7")
            patch.setattr(stats, "this_hour", lambda: hour - 400)
            count(root, hits=5)
        count(root, hits=1)
        for counters in stats._all:
            counters.leave()
        monkeypatch.setattr(counter_files, "_SUMS_BYTES", 50)
        counter_fold.fold(str(root))
        found = seen(root, "all")
        assert of(found, "gpucache_hits_total", host="others", level="own") == 5
        assert of(found, "gpucache_hits_total", host=host_label(), level="own") == 1
        assert "node7" not in str(found)


def assert_no_less(before: Mapping[Series, float], now: Mapping[Series, float]) -> None:
    """Check that each counter is still there, and has no less."""
    for key, value in before.items():
        if key[0].endswith("_total"):
            assert now[key] >= value, key
