"""The markers of what a node is still to give to the remote, and the lock of the process that gives them."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, SPAWN

from gpucache.disk.locks import is_free
from gpucache.disk.node import DAY_S, node_id
from gpucache.layout import paths
from gpucache.remote import outbox, pusher_lock
from gpucache.remote.outbox import (
    FORGOTTEN_S,
    Marker,
    count,
    leave,
    of_others,
    own,
    sweep,
    take_away,
)
from gpucache.remote.pusher_lock import STARTING_S, held, is_to_start, lock_name
from gpucache.report.cache_report import scan
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.grace import NO_GRACE
from gpucache.upkeep.plan import plan
from gpucache.upkeep.prune import PrunePolicy

KEYS = [letter * 52 for letter in "ABCDEF"]
OTHER = "0badcafe"


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in ("tmp", "store", "locks"):
        Path(paths.ours(str(tmp_path), name)).mkdir(parents=True)
    return str(tmp_path)


def at(root: str, key: str, node: str | None = None) -> Path:
    return Path(paths.ours(root, "outbox", node or node_id(), key))


def leave_before(root: str, key: str, age_s: float, node: str | None = None) -> None:
    """A marker that was left so many seconds ago."""
    path = at(root, key, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    then = time.time() - age_s
    os.utime(path, (then, then))


def keys(root: str) -> list[str]:
    return [marker.key for marker in own(root) + of_others(root)]


class TestMarkers:
    def test_what_was_left_waits_oldest_first(self, root):
        leave(root, KEYS[0])
        leave_before(root, KEYS[1], 10)
        assert keys(root) == [KEYS[1], KEYS[0]]

    def test_a_key_that_is_left_twice_waits_once(self, root):
        leave(root, KEYS[0])
        leave(root, KEYS[0])
        assert keys(root) == [KEYS[0]]

    def test_what_is_there_is_not_opened(self, root):
        """It may be another user's marker, which this one may not open, and stays as it is."""
        at(root, KEYS[0]).mkdir(parents=True)
        leave(root, KEYS[0])
        assert at(root, KEYS[0]).is_dir()

    def test_what_was_taken_away_waits_no_more(self, root):
        leave(root, KEYS[0])
        (marker,) = own(root)
        take_away(root, marker)
        take_away(root, marker)
        assert keys(root) == []

    def test_the_oldest_is_dropped_for_one_too_many(self, root, monkeypatch):
        monkeypatch.setattr(outbox, "MOST_MARKERS", 3)
        for number, key in enumerate(KEYS[:3]):
            leave_before(root, key, 100 - number)
        leave(root, KEYS[3])
        assert keys(root) == KEYS[1:4]
        assert count(root)[0] == 3

    def test_others_that_lie_there_are_no_markers(self, root, tmp_path):
        leave(root, KEYS[0])
        at(root, "notes.txt").touch()
        at(root, KEYS[1]).symlink_to(tmp_path)
        os.mkfifo(at(root, KEYS[2]))
        at(root, KEYS[3]).mkdir()
        assert keys(root) == [KEYS[0]]

    def test_nothing_is_read_through_a_link(self, root, tmp_path):
        leave(root, KEYS[0])
        os.rename(paths.ours(root, "outbox"), tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", paths.ours(root, "outbox"))
        assert keys(root) == []
        sweep(root)
        assert (tmp_path / "elsewhere" / node_id() / KEYS[0]).exists()

    def test_a_directory_that_another_node_sweeps_at_this_moment_is_made_again(
        self, root, monkeypatch
    ):
        made = outbox.make_below_root

        def made_and_swept(path):
            made(path)
            monkeypatch.setattr(outbox, "make_below_root", made)
            os.rmdir(path)

        monkeypatch.setattr(outbox, "make_below_root", made_and_swept)
        leave(root, KEYS[0])
        assert keys(root) == [KEYS[0]]


class TestOtherNodes:
    def test_what_a_living_node_has_left_is_its_own(self, root):
        leave_before(root, KEYS[0], DAY_S / 2, OTHER)
        assert keys(root) == []
        assert count(root)[0] == 1

    def test_what_a_node_has_left_for_a_day_is_taken_over(self, root):
        """It is gone by then, or was started again, and has another id."""
        leave_before(root, KEYS[0], DAY_S + 60, OTHER)
        assert own(root) + of_others(root) == [
            Marker(OTHER, KEYS[0], at(root, KEYS[0], OTHER).stat().st_mtime)
        ]

    def test_after_a_week_whoever_comes_by_removes_it(self, root):
        leave_before(root, KEYS[0], FORGOTTEN_S + 60, OTHER)
        leave_before(root, KEYS[1], FORGOTTEN_S - 60, OTHER)
        assert keys(root) == [KEYS[1]]
        sweep(root)
        assert count(root)[0] == 1
        take_away(root, of_others(root)[0])
        sweep(root)
        assert not at(root, "", OTHER).exists()

    def test_the_own_markers_stay_however_old(self, root):
        leave_before(root, KEYS[0], 2 * FORGOTTEN_S)
        sweep(root)
        assert keys(root) == [KEYS[0]]

    def test_a_node_whose_clock_is_wrong_forgets_nothing(self, root, monkeypatch):
        """The times of files are the disk's, and so is what they are compared with."""
        leave(root, KEYS[0])
        leave_before(root, KEYS[1], 60, OTHER)
        ahead = time.time() + 10 * FORGOTTEN_S
        monkeypatch.setattr(outbox.time, "time", lambda: ahead)
        sweep(root)
        assert count(root)[0] == 2


class TestUpkeep:
    """`prune` and `clean` leave markers alone: they are no cache, and bounded by themselves."""

    @pytest.mark.parametrize("policy", [PrunePolicy(), CleanPolicy(grace_s=NO_GRACE)])
    def test_markers_are_neither_strays_nor_entries(self, root, policy):
        leave(root, KEYS[0])
        report = scan(root)
        assert not report.entries
        assert not report.strays
        planned = plan(report, policy, {})
        assert not planned.strays
        assert not planned.left
        planned.execute()
        assert keys(root) == [KEYS[0]]


# ---- who pushes


def _ask(locks: str, together: Barrier) -> None:
    together.wait(PATIENCE_S)
    sys.exit(10 if is_to_start(locks) else 0)


class TestWhoPushes:
    @pytest.fixture
    def locks(self, root) -> str:
        return paths.ours(root, "locks")

    def test_one_of_all_ranks_is_to_start_a_pusher(self, locks):
        together = SPAWN.Barrier(4)
        ranks = [SPAWN.Process(target=_ask, args=(locks, together)) for _ in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(PATIENCE_S)
        assert sorted(rank.exitcode for rank in ranks) == [0, 0, 0, 10]

    def test_none_is_started_beside_one_that_runs(self, locks):
        with held(locks) as got:
            assert got
            os.utime(f"{locks}/{lock_name()}", (0, 0))
            assert not is_to_start(locks)

    def test_the_next_is_started_once_that_has_ended(self, locks):
        with held(locks):
            pass
        assert is_to_start(locks)

    def test_one_that_does_not_come_up_is_followed_after_a_while(self, locks, monkeypatch):
        assert is_to_start(locks)
        assert not is_to_start(locks)
        later = time.monotonic() + STARTING_S + 1
        monkeypatch.setattr(pusher_lock.time, "monotonic", lambda: later)
        assert is_to_start(locks)
        assert not is_to_start(locks)

    def test_one_that_was_killed_is_followed(self, locks, monkeypatch):
        """It has emptied the file; one that was made just now is about to be written."""
        monkeypatch.setattr(pusher_lock, "_WRITING_S", PATIENCE_S)
        path = Path(locks, lock_name())
        path.touch()
        assert not is_to_start(locks)
        os.utime(path, (0, 0))
        assert is_to_start(locks)

    def test_what_an_earlier_boot_has_left_keeps_nobody_from_starting_one(self, locks):
        Path(locks, lock_name()).write_text(f"{time.monotonic() + 1e6:.3f}")
        assert is_to_start(locks)

    def test_only_one_holds_the_lock(self, locks):
        with held(locks), held(locks) as second:
            assert not second
        with held(locks) as again:
            assert again

    def test_one_that_ends_between_the_two_looks_is_no_error(self, locks, monkeypatch):
        """It looks at the outbox once more after that, so that nothing is to be started."""
        assert is_to_start(locks)
        opened = pusher_lock.open_regular

        def gone(path):
            os.unlink(path)
            return opened(path)

        monkeypatch.setattr(pusher_lock, "open_regular", gone)
        assert not is_to_start(locks)

    def test_nothing_is_left_once_the_holder_is_gone(self, locks):
        with held(locks):
            assert not is_free(f"{locks}/{lock_name()}")
        assert os.listdir(locks) == []
