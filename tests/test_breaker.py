from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from gpucache.remote import breaker as breakers
from gpucache.remote.breaker import EMPTY_S, FIRST_S, LONGEST_S, MOST_MISSES, Breaker, State, Waste

NOW = 1_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says, in the last place."""
    times = [NOW]
    monkeypatch.setattr(breakers.time, "monotonic", lambda: times[-1])
    return times


@pytest.fixture
def path(tmp_path: Path) -> str:
    directory = tmp_path / "locks"
    directory.mkdir(0o700)
    return str(directory / "remote-0.state")


@pytest.fixture
def breaker(path: str, clock: list[float]) -> Breaker:
    return Breaker(path)


def refused(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def later(clock: list[float], seconds: float) -> None:
    clock.append(clock[-1] + seconds)


class TestFailures:
    def test_one_answer_that_is_late_closes_the_remote_for_half_a_minute(self, breaker, clock):
        breaker.closed("timeout", "no answer")
        assert not breaker.allows(1)
        later(clock, FIRST_S - 1)
        assert not breaker.allows(1)
        later(clock, 1)
        assert breaker.allows(1)

    def test_three_failures_in_a_row_close_it(self, breaker):
        for _ in range(2):
            breaker.failed("refused")
        assert breaker.allows(1)
        breaker.failed("refused")
        assert not breaker.allows(1)
        assert (breaker.read().why, breaker.read().said) == ("errors", "refused")

    @pytest.mark.parametrize("answers", ["answered", "missed"])
    def test_an_answer_in_between_forgets_the_failures(self, breaker, answers):
        breaker.failed("refused")
        breaker.failed("refused")
        getattr(breaker, answers)()
        breaker.failed("refused")
        assert breaker.allows(1)

    def test_each_term_is_twice_as_long_up_to_ten_minutes(self, breaker, clock):
        terms = []
        for _ in range(7):
            breaker.closed("timeout")
            terms.append(breaker.read().closed_until - clock[-1])
            later(clock, terms[-1])
            assert breaker.allows(1)
        assert terms == [30, 60, 120, 240, 480, 600, LONGEST_S]

    def test_what_fails_at_the_same_time_counts_once(self, breaker, clock):
        """Four ranks whose questions hang together double no term."""
        for _ in range(4):
            breaker.closed("timeout")
        assert breaker.read().closed_until == NOW + FIRST_S

    def test_once_it_answers_again_the_next_term_is_short(self, breaker, clock):
        breaker.closed("timeout")
        later(clock, FIRST_S)
        assert breaker.allows(1)
        breaker.answered()
        breaker.closed("timeout")
        assert breaker.read().closed_until == clock[-1] + FIRST_S


class TestProbes:
    @pytest.fixture(autouse=True)
    def _over(self, breaker, clock):
        breaker.closed("timeout")
        later(clock, FIRST_S)

    def test_one_process_asks_for_all(self, breaker, path):
        assert breaker.allows(5)
        assert not Breaker(path).allows(5)

    def test_a_probe_of_which_nobody_hears_is_taken_by_the_next(self, breaker, path, clock):
        """Whoever took it may have been killed."""
        assert breaker.allows(5)
        later(clock, 5)
        assert Breaker(path).allows(5)

    def test_one_failure_of_it_is_enough(self, breaker):
        assert breaker.allows(5)
        breaker.failed("refused")
        assert not breaker.allows(5)

    def test_its_answer_opens_the_remote_to_all(self, breaker, path):
        assert breaker.allows(5)
        breaker.missed()
        assert Breaker(path).allows(5)
        assert Breaker(path).allows(5)


class TestMisses:
    def test_sixteen_in_a_row_close_it_for_a_minute(self, breaker, clock):
        for _ in range(MOST_MISSES):
            assert breaker.allows(1)
            breaker.missed()
        assert not breaker.allows(1)
        later(clock, EMPTY_S)
        assert breaker.allows(1)
        breaker.missed()
        assert breaker.allows(1)

    def test_a_hit_in_between_begins_anew(self, breaker):
        for _ in range(MOST_MISSES - 1):
            breaker.missed()
        breaker.answered()
        breaker.missed()
        assert breaker.allows(1)

    def test_nobody_who_waits_gives_up_for_that(self, breaker, clock):
        """The remote answers; it had nothing for others."""
        for _ in range(MOST_MISSES):
            breaker.missed()
        assert not breaker.read().has_failed(clock[-1])


class TestSlowAnswers:
    """A server that always takes just less than the limit costs no more than one that hangs."""

    def test_misses_that_took_a_limit_in_all_close_it(self, breaker):
        breaker.missed(Waste(0.4, 1.0))
        breaker.missed(Waste(0.4, 1.0))
        assert breaker.allows(1)
        breaker.missed(Waste(0.4, 1.0))
        assert (breaker.allows(1), breaker.read().why) == (False, "misses")

    def test_so_do_errors(self, breaker):
        breaker.failed("refused", Waste(0.6, 1.0))
        breaker.failed("refused", Waste(0.6, 1.0))
        assert (breaker.allows(1), breaker.read().why) == (False, "errors")

    def test_and_both_together(self, breaker):
        breaker.missed(Waste(0.6, 1.0))
        breaker.failed("refused", Waste(0.6, 1.0))
        assert not breaker.allows(1)

    def test_a_hit_in_between_was_worth_it(self, breaker):
        breaker.missed(Waste(0.6, 1.0))
        breaker.answered()
        breaker.missed(Waste(0.6, 1.0))
        assert breaker.allows(1)

    def test_an_empty_remote_at_30_ms_is_not_slow(self, breaker):
        for _ in range(MOST_MISSES - 1):
            breaker.missed(Waste(0.03, 1.0))
        assert breaker.allows(1)


class TestStarts:
    def test_one_process_starts_a_courier(self, breaker, path, clock):
        assert breaker.may_start()
        assert not Breaker(path).may_start()
        later(clock, breakers.STARTING_S)
        assert Breaker(path).may_start()

    def test_one_that_is_up_has_been_started_no_more(self, breaker):
        """It may end, and then the next is started at once."""
        assert breaker.may_start()
        breaker.came_up()
        assert breaker.may_start()

    @pytest.mark.parametrize("why", ["no-courier", "unusable"])
    def test_one_that_comes_up_opens_what_its_absence_has_closed(self, breaker, why):
        breaker.closed(why)
        breaker.came_up()
        assert breaker.allows(1)

    def test_one_that_comes_up_opens_nothing_else(self, breaker):
        breaker.closed("timeout")
        breaker.came_up()
        assert not breaker.allows(1)


class TestTheFile:
    def test_all_processes_know_what_one_has_learned(self, breaker, path):
        breaker.closed("timeout", "why")
        assert Breaker(path).read() == breaker.read()
        assert not Breaker(path).allows(1)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b"[" * 100_000,
            json.dumps({**State()._asdict(), "terms": -1}).encode(),
            json.dumps({**State()._asdict(), "closed_until": "NOW"}).encode(),
            json.dumps({**State()._asdict(), "terms": 10**6}).encode(),
        ],
    )
    def test_nonsense_is_an_open_remote(self, breaker, path, content):
        Path(path).write_bytes(content)
        assert breaker.allows(1)
        breaker.closed("timeout")
        assert not breaker.allows(1)

    def test_a_time_that_is_too_far_off_closes_nothing(self, breaker, path):
        """Nobody can have written it since this node was started."""
        state = State(closed_until=NOW + LONGEST_S + 1, terms=1)
        Path(path).write_text(json.dumps(state._asdict()))
        assert breaker.allows(1)

    def test_a_long_reason_leaves_the_file_whole(self, breaker, path):
        breaker.closed("timeout", "\U0001f512" * 10_000)
        assert not Breaker(path).allows(1)
        breaker.answered()
        later_state = Breaker(path).read()
        assert later_state == State()

    @pytest.mark.parametrize("planted", ["directory", "link", "fifo", "second name"])
    def test_what_is_planted_in_its_place_is_not_touched(self, breaker, path, planted, tmp_path):
        other = tmp_path / "other"
        other.write_text("mine")
        if planted == "directory":
            os.mkdir(path)
        elif planted == "link":
            os.symlink(other, path)
        elif planted == "fifo":
            os.mkfifo(path)
        else:
            os.link(other, path)
        breaker.closed("timeout")
        assert other.read_text() == "mine"
        assert not breaker.allows(1), "what this process has learned counts for it all the same"

    def test_a_lock_that_is_held_keeps_nobody(self, breaker, path, monkeypatch):
        """A signal handler may ask in the middle of its own thread's change."""
        breaker.missed()
        monkeypatch.setattr(breakers, "_PATIENCE_S", -1.0)
        with open(path) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            breaker.closed("timeout")
        assert breaker.allows(1)

    def test_without_the_directory_this_process_still_knows(self, tmp_path, clock):
        breaker = Breaker(str(tmp_path / "none" / "remote-0.state"))
        breaker.closed("timeout")
        assert not breaker.allows(1)

    def test_where_the_disk_is_full_this_process_still_knows(self, path, clock, monkeypatch):
        """Else each of its kernels would wait for a server that hangs."""
        with monkeypatch.context() as patched:
            patched.setattr(breakers.os, "pwrite", refused)
            Breaker(path).closed("timeout", "why")
            assert Breaker(path).read().said == "why"
            assert not Breaker(path).allows(1)
            assert Breaker(path).may_start()
            assert not Breaker(path).may_start(), "as where a courier cannot come up either"
        later(clock, FIRST_S)
        assert Breaker(path).allows(1)
        Breaker(path).answered()
        assert Breaker(path).read().terms == 0

    def test_what_others_could_write_counts_for_whoever_could_not(self, path, clock, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(breakers, "_opened", refused)
            Breaker(path).missed()
        before = dict(breakers._unwritten)
        breakers._unwritten.clear()  # as another process
        Breaker(path).closed("timeout")
        breakers._unwritten.update(before)
        assert not Breaker(path).allows(1)

    def test_only_this_user_reads_it(self, breaker, path):
        breaker.missed()
        assert os.stat(path).st_mode & 0o777 == 0o600
