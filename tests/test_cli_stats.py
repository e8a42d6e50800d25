"""`gpucache stats`: which time and which host is counted, and what a mark takes away."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cli import documented
from support.terminals import WIDTHS, assert_fits, assert_whole, at_width

from gpucache.layout import paths
from gpucache.store import counter_files, counts, stats
from gpucache.store.mark import mark_of, since_mark
from gpucache.store.stats import Stats


@pytest.fixture
def root(root: Path) -> Path:
    """A root in which nothing was counted yet."""
    for part in ("stats", "tmp"):
        (root / "gpucache/v1" / part).mkdir(parents=True, mode=0o700)
    (root / "triton/0").mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    return root


@contextmanager
def at(
    hours_ago: float, monkeypatch: pytest.MonkeyPatch, host: str | None = None
) -> Iterator[None]:
    """What is counted in here was counted so long ago, and on that host."""
    hour = int((time.time() - 3600 * hours_ago) // 3600)
    with monkeypatch.context() as patch:
        patch.setattr(stats, "this_hour", lambda: hour)
        if host is not None:
            patch.setattr(stats, "host_label", lambda: host)
        yield


def count(root: Path, device: str = "0", **amounts: float) -> None:
    counters = Stats(paths.ours(str(root), "stats"), device)
    for name, amount in amounts.items():
        counters.add(name, amount)
    counters.flush()


class TestSince:
    def test_what_was_counted_before_the_hour_is_left_out(self, here, root, monkeypatch):
        with at(30, monkeypatch):
            count(root, hits=100)
        with at(5, monkeypatch):
            count(root, hits=10)
        count(root, hits=1)
        hits = {}
        for since in ("1s", "6h", "7d"):
            done = here("stats", "--since", since, "--root", root, "--json")
            hits[since] = done.json["all"]["hits"]
        assert hits == {"1s": 1, "6h": 11, "7d": 111}

    def test_it_says_that_it_is_to_the_hour(self, here, root):
        count(root, hits=1)
        done = here("stats", "--since", "2h", "--root", root)
        assert done.code == 0
        began = (time.time() - 7200) // 3600 * 3600
        said = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
        assert done.err == f"note: counted since {said}, to the hour\n"

    @pytest.mark.parametrize("since", ["15d", "9999999d"])
    def test_it_names_no_time_of_which_no_hours_are_kept(self, here, root, since):
        count(root, hits=1)
        done = here("stats", "--since", since, "--root", root)
        began = (counts.this_hour() - counts.HOURS_KEPT + 1) * 3600
        said = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
        why = "to the hour: of what came before, no hours are kept"
        assert (done.code, done.err) == (0, f"note: counted since {said}, {why}\n")

    @pytest.mark.parametrize(
        "words", [("--since", "2h", "--reset"), ("--reset", "--ever"), ("--since", "1h", "--ever")]
    )
    def test_two_times_at_once_are_refused(self, here, root, words):
        assert here("stats", *words, "--root", root).code == 2


class TestHost:
    def test_only_what_a_host_has_counted_is_shown(self, here, root, monkeypatch):
        with at(0, monkeypatch, "node7"):
            count(root, hits=7)
        count(root, hits=1)
        done = here("stats", "--host", "node7", "--root", root, "--json")
        assert (done.json["host"], done.json["all"]["hits"]) == ("node7", 7)
        assert here("stats", "--root", root, "--json").json["all"]["hits"] == 8

    def test_an_unknown_host_is_an_error_that_lists_those_that_are_known(
        self, here, root, monkeypatch
    ):
        for host in ("node7", "login"):
            with at(0, monkeypatch, host):
                count(root, hits=1)
        done = here("stats", "--host", "node8", "--root", root)
        assert (done.code, done.out) == (1, "")
        assert "hint: there is node7, login\n" in done.err

    def test_a_host_that_counted_nothing_lately_is_no_error(self, here, root, monkeypatch):
        with at(30, monkeypatch, "node7"):
            count(root, hits=7)
        done = here("stats", "--host", "node7", "--since", "2h", "--root", root, "--json")
        assert done.json["all"]["hits"] == 0


class TestReset:
    def test_what_was_counted_before_is_shown_by_ever_alone_and_stays_on_disk(self, here, root):
        count(root, hits=5, misses=1)
        assert here("stats", "--reset", "--root", root).code == 0
        count(root, hits=2)
        shown = here("stats", "--root", root, "--json").json
        assert (shown["all"]["hits"], shown["all"]["misses"]) == (2, 0)
        assert shown["since"] == mark_of(str(root)).at
        ever = here("stats", "--ever", "--root", root, "--json").json
        assert (ever["all"]["hits"], ever["since"]) == (7, None)
        assert stats.totals(str(root)) == {"0": {"hits": 7, "misses": 1}}

    def test_a_person_is_told_since_when(self, here, root):
        here("stats", "--reset", "--root", root)
        done = here("stats", "--root", root)
        assert done.err.startswith("note: counted since ")
        assert done.err.endswith(", when --reset was said\n")

    def test_json_is_what_the_page_says(self, here, root):
        (fields,), _ = documented("stats --reset")
        assert list(here("stats", "--reset", "--root", root, "--json").json) == fields

    def test_what_lost_its_host_or_its_path_since_is_taken_from_where_it_went(self):
        """A fold does that with what counted nothing for long."""
        before = {
            counts.Where("pod1", "/x"): {"hits": 5.0},
            counts.Where("pod2", "0"): {"hits": 3.0, "misses": 1.0},
        }
        now = {
            counts.Where("", "elsewhere"): {"hits": 6.0},
            counts.Where("", "0", 77): {"hits": 4.0, "misses": 1.0},
        }
        left = counts.add_up(since_mark(now, stats_mark(before)))
        assert left == {"elsewhere": {"hits": 1}, "0": {"hits": 1, "misses": 0}}

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{", '{"version": 2}', '{"version": 1, "at": "x", "sums": 7}', "9" * 99]
        + [f'{{"version": 1, "at": {at}, "sums": {{}}}}' for at in ("NaN", "1e300", "-1e18")],
    )
    def test_a_mark_that_makes_no_sense_is_none(self, here, root, text):
        count(root, hits=5)
        (root / "gpucache/v1/stats/mark").write_text(text)
        assert here("stats", "--root", root, "--json").json["all"]["hits"] == 5
        done = here("stats", "--root", root)
        assert (done.code, done.err) == (0, "")

    def test_through_a_link_no_mark_is_put(self, here, root, tmp_path):
        (root / "gpucache/v1/stats").rmdir()
        (root / "gpucache/v1/stats").symlink_to(tmp_path)
        assert here("stats", "--reset", "--root", root).code == 1
        assert not (tmp_path / "mark").exists()

    def test_in_a_root_of_another_user_no_mark_is_put(self, here, root, as_root):
        count(root, hits=5)
        os.chown(root, 1234, 1234)
        assert here("stats", "--reset", "--root", root).code == 1
        assert mark_of(str(root)) is None


def stats_mark(sums: counts.Sums) -> object:
    from gpucache.store.mark import Mark

    return Mark(0.0, sums)


class TestHitRate:
    def test_it_is_the_share_of_what_was_asked_for(self, here, root):
        count(root, hits=70, shared_hits=20, misses=10)
        said = here("stats", "--root", root, "--json").json
        assert said["all"]["hit_rate"] == said["devices"]["0"]["hit_rate"] == 0.9

    def test_of_nothing_there_is_none_and_the_way_to_some_is_told(self, here, root):
        done = here("stats", "--root", root)
        assert done.rows == [["all", *"000000"[:5], *["0.0"] * 3, "-"]]
        assert "note: nothing was counted yet: start a program by `gpucache run" in done.err

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_at_each_width_it_is_there_and_nothing_is_cut(self, root, columns):
        for device in range(8):
            count(root, str(device), hits=123_456_789, misses=1_000_000, saved_s=12_345.6)
        seen = at_width(("stats", "--root", root), columns)
        assert_fits(seen, columns)
        assert_whole(seen, ["hit_rate", "99.2%", "987654312", *map(str, range(8))])


class TestNames:
    def test_however_many_pods_share_a_node_a_host_keeps_what_it_has_counted(self):
        """`gpucache metrics` would export less than before."""
        sums: counts.Sums = {}
        for pod in range(200):
            sums[counts.Where(f"pod{pod}", "0", counts.this_hour())] = {"hits": 1.0}
        sums[counts.Where("node", "0", 12)] = {"hits": 7.0}
        kept = counts.bounded(sums, counts.this_hour(), lambda some: len(some) <= 2, "node")
        assert kept == {
            counts.Where("node", "0"): {"hits": 7},
            counts.Where("", "0", counts.this_hour()): {"hits": 200},
        }

    def test_a_fold_keeps_the_name_of_its_own_host(self, root, monkeypatch):
        with at(24 * 20, monkeypatch):
            count(root, hits=7)
        for number in range(40):
            with at(24 * 20, monkeypatch, f"pod{number}"):
                count(root, hits=1)
        stats._leave_all()
        from gpucache.store import counter_fold

        monkeypatch.setattr(counter_files, "_SUMS_BYTES", 100)
        counter_fold.fold(str(root))
        hosts = {where.host for where in stats.sums_of(str(root))}
        assert hosts == {counter_files.host_label(), ""}
        assert json.dumps(stats.totals(str(root))) == '{"0": {"hits": 47}}'
