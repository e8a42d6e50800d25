"""The courier with a remote that a test answers for, and `ask`, in one process; both real in `test_read_through`."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import PATIENCE_S

from gpucache.errors import NotInstalledError
from gpucache.remote import ask as asking
from gpucache.remote import courier as couriers
from gpucache.remote import meeting as meetings
from gpucache.remote.ask import Reading, ask
from gpucache.remote.breaker import Breaker, State
from gpucache.remote.courier import Courier
from gpucache.remote.meeting import Meeting, address, forget_old, is_own
from gpucache.remote.question import Answer, Question, parsed_answer, parsed_question

KEY, VERSION = "K" * 52, "3.9.0"
SHORT_S = 0.5


@pytest.fixture
def locks(tmp_path: Path) -> str:
    directory = tmp_path / ("deep" * 30) / "locks"  # longer than a socket's address may be
    directory.mkdir(0o700, parents=True)
    return str(directory)


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    return Reading(str(tmp_path / "root"), "file:///remote", "me:key", PATIENCE_S)


@pytest.fixture
def meeting(locks: str, reading: Reading) -> Meeting:
    return Meeting.of(locks, reading.root, reading.url, reading.trust)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `ask` would start; nothing is started."""
    started: list[str] = []
    monkeypatch.setattr(
        asking, "start_beside", lambda module, words, environ: started.append(module)
    )
    return started


@pytest.fixture(autouse=True)
def has_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here uses them."""
    monkeypatch.setattr(asking, "require", lambda url: None)


Serve = Callable[..., Courier]


@pytest.fixture
def serve(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a courier whose remote is a function of the question."""
    monkeypatch.setattr(couriers, "_LOOK_S", 0.01)
    threads = []
    end = threading.Event()

    def start(fetch: Callable[..., Answer], **options: object) -> Courier:
        courier = Courier(meeting, Breaker(meeting.state), fetch, **options)
        is_over = courier._is_over
        monkeypatch.setattr(courier, "_is_over", lambda: end.is_set() or is_over())
        thread = threading.Thread(target=courier.serve)
        thread.start()
        threads.append(thread)
        until(lambda: os.path.lexists(f"{meeting.directory}/{meeting.socket}"))
        return courier

    yield start
    end.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


def quick(reading: Reading) -> Reading:
    return Reading(reading.root, reading.url, reading.trust, SHORT_S)


class TestAnAnswer:
    def test_it_is_what_the_remote_gave(self, serve, reading, locks, starts):
        asked = []

        def fetch(question, is_waited_for):
            asked.append((question.store_key, question.triton_version, is_waited_for()))
            return Answer("hit", size_bytes=7)

        serve(fetch)
        assert ask(reading, locks, KEY, VERSION) == Answer("hit", size_bytes=7)
        assert asked == [(KEY, VERSION, True)]
        assert starts == []

    def test_many_ask_at_once_and_none_waits_for_another(self, serve, reading, locks, starts):
        together = threading.Barrier(4, timeout=PATIENCE_S)

        def fetch(question, is_waited_for):
            together.wait()
            return Answer("miss", question.store_key)

        serve(fetch)
        answers: dict[str, Answer] = {}

        def one(key: str) -> None:
            answers[key] = ask(reading, locks, key, VERSION)

        threads = [threading.Thread(target=one, args=(str(number),)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert {key: answer.code for key, answer in answers.items()} == {
            str(number): str(number) for number in range(4)
        }

    def test_more_than_a_few_take_turns(self, serve, reading, locks, starts):
        """Each request has a process of its own, and 64 at once would take longer to start than to take turns."""
        begun: list[str] = []
        go_on = threading.Event()

        def fetch(question, is_waited_for):
            begun.append(question.store_key)
            go_on.wait(PATIENCE_S)
            return Answer("miss")

        serve(fetch)
        answers = []

        def one(key: str) -> None:
            answers.append(ask(reading, locks, key, VERSION).did)

        threads = [threading.Thread(target=one, args=(str(number),)) for number in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(begun) == couriers._MOST_REQUESTS)
        assert ask(quick(reading), locks, "late", VERSION).did in ("closed", "timeout")
        assert len(begun) == couriers._MOST_REQUESTS
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(answers) == 6

    @pytest.mark.parametrize(
        ("did", "why"), [("timeout", "timeout"), ("miss", ""), ("bad", ""), ("hit", "")]
    )
    def test_the_node_learns_of_it(self, serve, reading, locks, meeting, did, why, starts):
        serve(lambda question, is_waited_for: Answer(did))
        ask(reading, locks, KEY, VERSION)
        assert Breaker(meeting.state).read().why == why

    def test_three_errors_keep_the_fourth_from_asking(self, serve, reading, locks, starts):
        asked = []

        def fetch(question, is_waited_for):
            asked.append(question.store_key)
            return Answer("error", "refused", "no")

        serve(fetch)
        answers = [ask(reading, locks, str(number), VERSION).did for number in range(4)]
        assert answers == ["error", "error", "error", "closed"]
        assert asked == ["0", "1", "2"]

    def test_a_defect_is_an_error_and_not_the_end(self, serve, reading, locks, starts):
        def fetch(question, is_waited_for):
            raise ZeroDivisionError("with a secret")

        serve(fetch)
        answer = ask(reading, locks, KEY, VERSION)
        assert (answer.did, answer.code) == ("error", "defect")
        assert "secret" not in answer.said

    def test_the_disk_of_this_node_is_no_failure_of_the_remotes(
        self, serve, reading, locks, meeting, starts
    ):
        serve(lambda question, is_waited_for: Answer("disk", "disk", "no space"))
        for _ in range(4):
            assert ask(reading, locks, KEY, VERSION).did == "disk"


class TestWhoWaits:
    def test_nobody_waits_longer_than_the_limit(self, serve, reading, locks, meeting, starts):
        """The courier hangs, or is stopped."""
        end = threading.Event()
        serve(lambda question, is_waited_for: Answer("hit") if end.wait(PATIENCE_S) else None)
        began = time.monotonic()
        try:
            answer = ask(quick(reading), locks, KEY, VERSION)
        finally:
            end.set()
        assert answer.did == "timeout"
        assert SHORT_S <= time.monotonic() - began < PATIENCE_S / 2
        assert Breaker(meeting.state).read().why == "silent"

    def test_the_next_question_of_the_node_does_not_wait(self, serve, reading, locks, starts):
        end = threading.Event()
        serve(lambda question, is_waited_for: Answer("hit") if end.wait(PATIENCE_S) else None)
        try:
            ask(quick(reading), locks, KEY, VERSION)
            assert ask(reading, locks, "other", VERSION).did == "closed"
        finally:
            end.set()

    def test_whoever_waits_already_gives_up_with_the_first(self, serve, reading, locks, starts):
        """Four ranks whose questions hang wait for one limit, and not each for its own."""
        end, has_asked = threading.Event(), threading.Event()

        def fetch(question, is_waited_for):
            has_asked.set()
            end.wait(PATIENCE_S)
            return Answer("hit")

        serve(fetch)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(ask(reading, locks, "patient", VERSION))
        )
        thread.start()
        try:
            assert has_asked.wait(PATIENCE_S)
            ask(quick(reading), locks, KEY, VERSION)
            thread.join(PATIENCE_S / 2)
            (answer,) = answers
            assert (answer.did, answer.code) == ("closed", "silent")
            assert f"no answer within {SHORT_S:g} s" in answer.said
        finally:
            end.set()
            thread.join(PATIENCE_S)

    def test_a_courier_that_drips_is_waited_for_no_longer(self, meeting, reading, locks, starts):
        end = threading.Event()

        def drip() -> None:
            with address(meeting) as path, socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                listening.set()
                with listener.accept()[0] as connection:
                    connection.recv(1000)
                    while not end.wait(0.01):
                        connection.sendall(b"x")

        listening = threading.Event()
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert listening.wait(PATIENCE_S)
            began = time.monotonic()
            assert ask(quick(reading), locks, KEY, VERSION).did == "timeout"
            assert time.monotonic() - began < PATIENCE_S / 2
        finally:
            end.set()
            thread.join(PATIENCE_S)

    def test_an_answer_that_came_while_the_asker_was_stopped_counts(
        self, serve, reading, locks, meeting, starts, monkeypatch
    ):
        """A debugger may have held the rank for longer than the limit."""
        has_answered = threading.Event()

        def fetch(question, is_waited_for):
            has_answered.set()
            return Answer("hit")

        serve(fetch)
        look = asking.is_readable

        def after_a_stop(end, timeout_s):
            if not has_answered.is_set():
                assert has_answered.wait(PATIENCE_S)
                until(lambda: look(end, 0))
                time.sleep(SHORT_S)
                return False
            return look(end, timeout_s)

        monkeypatch.setattr(asking, "is_readable", after_a_stop)
        assert ask(quick(reading), locks, KEY, VERSION).did == "hit"

    def test_a_process_with_thousands_of_files_open_may_ask(self, serve, reading, locks, starts):
        """`select.select` would raise for a descriptor above 1,023."""
        serve(lambda question, is_waited_for: Answer("hit"))
        held: list[int] = []
        try:
            while len(held) < 1100:
                held.append(os.open(os.devnull, os.O_RDONLY))
            assert ask(reading, locks, KEY, VERSION).did == "hit"
        finally:
            for fd in held:
                os.close(fd)

    def test_a_whole_flood_is_no_answer(self, meeting, reading, locks, starts):
        with address(meeting) as path, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def flood() -> None:
                with listener.accept()[0] as connection:
                    try:
                        while True:
                            connection.sendall(b"x" * 10_000)
                    except OSError:
                        pass

            thread = threading.Thread(target=flood)
            thread.start()
            assert ask(reading, locks, KEY, VERSION).did == "error"
            thread.join(PATIENCE_S)

    def test_an_asker_that_has_gone_is_not_waited_for(self, serve, meeting):
        seen = []
        gone = threading.Event()

        def fetch(question, is_waited_for):
            seen.append(is_waited_for())
            gone.wait(PATIENCE_S)
            until(lambda: not is_waited_for())
            seen.append("gone")
            return Answer("closed")

        serve(fetch)
        with socket.socket(socket.AF_UNIX) as end, address(meeting) as path:
            end.connect(path)
            end.sendall(Question(KEY, VERSION, PATIENCE_S).encoded())
            until(lambda: seen)
        gone.set()
        until(lambda: len(seen) == 2)
        assert seen == [True, "gone"]


class TestWhoStartsIt:
    def test_one_that_asks_starts_one(self, reading, locks, starts):
        assert ask(quick(reading), locks, KEY, VERSION).did == "timeout"
        assert starts == ["gpucache.remote.courier"]

    def test_without_one_all_wait_for_one_limit_in_all(self, reading, locks, starts, meeting):
        """One that ends at its start, as without its packages, costs no more than a server that hangs."""
        ask(quick(reading), locks, KEY, VERSION)
        began = time.monotonic()
        answer = ask(reading, locks, KEY, VERSION)
        assert (answer.did, answer.code) == ("closed", "no-courier")
        assert "did not come up" in answer.said
        assert time.monotonic() - began < PATIENCE_S / 2
        assert len(starts) == 1

    def test_one_that_comes_up_late_is_asked_all_the_same(self, reading, locks, starts, serve):
        ask(quick(reading), locks, KEY, VERSION)
        serve(lambda question, is_waited_for: Answer("hit"))
        until(lambda: ask(reading, locks, KEY, VERSION).did == "hit")

    def test_what_it_cannot_do_is_told_at_once(self, reading, locks, meeting, monkeypatch):
        def fail(module, words, environ):
            Breaker(meeting.state).closed("unusable", "opendal is missing")

        monkeypatch.setattr(asking, "start_beside", fail)
        assert ask(reading, locks, KEY, VERSION) == Answer(
            "closed", "unusable", "opendal is missing"
        )

    def test_where_none_can_be_started_the_error_says_so(
        self, meeting, reading, locks, monkeypatch
    ):
        def fail(module, words, environ):
            raise BlockingIOError

        monkeypatch.setattr(asking, "start_beside", fail)
        for _ in range(2):  # nobody waits for what was not started
            with pytest.raises(BlockingIOError):
                ask(reading, locks, KEY, VERSION)
        assert Breaker(meeting.state).read() == State(), "another program may start one"

    def test_a_python_without_the_libraries_asks_another_ones_and_closes_nothing(
        self, meeting, reading, locks, starts, serve, monkeypatch
    ):
        """The programs of two environments, or images, may share a node and a root."""

        def lacks(url):
            raise NotInstalledError("zstandard")

        monkeypatch.setattr(asking, "require", lacks)
        answer = ask(reading, locks, KEY, VERSION)
        assert (answer.did, answer.code) == ("closed", "unusable")
        assert "pip install opendal redis zstandard cryptography" in answer.said
        assert not starts
        assert Breaker(meeting.state).read() == State()
        serve(lambda question, is_waited_for: Answer("hit"))
        assert ask(reading, locks, KEY, VERSION).did == "hit"

    def test_a_socket_that_a_killed_one_has_left_is_replaced(
        self, meeting, serve, reading, locks, starts
    ):
        with address(meeting) as path, socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        fetched = []
        serve(lambda question, is_waited_for: fetched.append(question) or Answer("hit"))
        until(lambda: ask(quick(reading), locks, KEY, VERSION).did == "hit")

    def test_one_that_ends_in_the_middle_is_started_again(self, meeting, reading, locks, starts):
        with address(meeting) as path, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            thread = threading.Thread(target=lambda: listener.accept()[0].close())
            thread.start()
            answers = []
            asker = threading.Thread(
                target=lambda: answers.append(ask(quick(reading), locks, KEY, VERSION))
            )
            asker.start()
            thread.join(PATIENCE_S)
        asker.join(PATIENCE_S)
        assert answers[0].did in ("timeout", "closed")
        assert starts

    def test_one_that_always_ends_is_asked_three_times(self, meeting, reading, locks, starts):
        """An object at which it dies costs no start of it for each key."""
        accepted = []

        def die() -> None:
            with address(meeting) as path, socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                listening.set()
                listener.settimeout(PATIENCE_S)
                while not end.is_set():
                    connection = listener.accept()[0]
                    accepted.append(1)
                    connection.close()

        listening, end = threading.Event(), threading.Event()
        thread = threading.Thread(target=die)
        thread.start()
        assert listening.wait(PATIENCE_S)
        answer = ask(reading, locks, KEY, VERSION)
        end.set()
        with socket.socket(socket.AF_UNIX) as last, address(meeting) as path:
            last.connect(path)
        thread.join(PATIENCE_S)
        assert answer.did == "closed"
        assert len(accepted) <= 4


class TestItsEnd:
    def test_it_ends_once_nobody_asks(self, serve, meeting, reading, locks, monkeypatch, starts):
        serve(lambda question, is_waited_for: Answer("hit"))
        assert ask(reading, locks, KEY, VERSION).did == "hit"
        monkeypatch.setattr(couriers, "IDLE_S", -1.0)
        until(lambda: not os.path.lexists(f"{locks}/{meeting.socket}"))

    def test_ahead_of_a_program_it_waits_for_the_first_question(
        self, serve, meeting, locks, monkeypatch
    ):
        monkeypatch.setattr(couriers, "IDLE_S", 0.0)
        alive = [True]
        monkeypatch.setattr(couriers, "is_running", lambda program: alive[0])
        courier = serve(lambda question, is_waited_for: Answer("hit"), program=(1, 1))
        looked = courier._last
        assert not courier._is_over()
        assert courier._last == looked
        alive[0] = False
        until(lambda: not os.path.lexists(f"{locks}/{meeting.socket}"))

    def test_it_ends_where_its_socket_was_removed(self, serve, meeting, locks):
        """Or ranks would start another, which finds that it lives."""
        serve(lambda question, is_waited_for: Answer("hit"))
        os.unlink(f"{locks}/{meeting.socket}")

    def test_another_ones_socket_stays(self, serve, meeting, locks):
        serve(lambda question, is_waited_for: Answer("hit"))
        os.unlink(f"{locks}/{meeting.socket}")
        Path(locks, meeting.socket).touch()
        threads = [thread for thread in threading.enumerate() if "serve" in thread.name]
        for thread in threads:
            thread.join(PATIENCE_S)
        assert Path(locks, meeting.socket).exists()

    def test_where_there_can_be_no_socket_whoever_asks_is_told_at_once(
        self, meeting, reading, locks, monkeypatch
    ):
        def start(module, words, environ):
            def refuse(*_):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

            with monkeypatch.context() as patched:
                patched.setattr(couriers.socket.socket, "bind", refuse)
                with pytest.raises(OSError, match="not supported"):
                    Courier(meeting, Breaker(meeting.state), pytest.fail).serve()

        monkeypatch.setattr(asking, "start_beside", start)
        answer = ask(reading, locks, KEY, VERSION)
        assert (answer.did, answer.code) == ("closed", "no-courier")
        assert answer.said == f"there can be no socket in {locks}: Operation not supported"

    def test_with_too_many_files_open_it_goes_on(self, serve, reading, locks, starts, monkeypatch):
        refused = []
        accept = socket.socket.accept

        def refuse(listener):
            if len(refused) < 3:
                refused.append(1)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return accept(listener)

        monkeypatch.setattr(couriers.socket.socket, "accept", refuse)
        serve(lambda question, is_waited_for: Answer("hit"))
        assert ask(reading, locks, KEY, VERSION).did == "hit"
        assert len(refused) == 3
        assert not starts

    def test_a_request_that_never_comes_back_ends_the_process(self, meeting, monkeypatch):
        courier = Courier(meeting, Breaker(meeting.state), lambda *_: Answer("hit"))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            courier._limits[ours] = time.monotonic() - couriers._STUCK_S - 1
            assert courier._is_stuck()
            courier._limits[ours] = time.monotonic()
            assert not courier._is_stuck()


class TestWhoIsAtTheOtherEnd:
    def test_another_users_courier_is_not_asked(self, serve, reading, locks, starts, monkeypatch):
        asked = []
        serve(lambda question, is_waited_for: asked.append(1) or Answer("hit"))
        own = os.geteuid()
        monkeypatch.setattr(asking, "is_own", lambda end: False)
        assert ask(quick(reading), locks, KEY, VERSION).did == "timeout"
        assert asked == []
        assert own == os.geteuid()

    def test_another_user_is_not_answered(self, serve, reading, locks, starts, monkeypatch):
        asked = []
        serve(lambda question, is_waited_for: asked.append(1) or Answer("hit"))
        monkeypatch.setattr(couriers, "is_own", lambda end: False)
        assert ask(quick(reading), locks, KEY, VERSION).did in ("timeout", "closed")
        assert asked == []

    def test_the_kernel_tells_who_it_is(self, monkeypatch):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs:
            assert is_own(ours)
            monkeypatch.setattr(meetings.os, "geteuid", lambda: 4242)
            assert not is_own(ours)


class TestWords:
    @pytest.mark.parametrize(
        "line", [b"", b"\n", b"[]", b"{}", b"{" * 10_000, b'{"did": 1}', b'"hit"', b"\xff"]
    )
    def test_nonsense_is_neither_a_question_nor_an_answer(self, line):
        assert parsed_question(line) is None
        assert parsed_answer(line) is None

    def test_what_is_said_comes_back(self):
        question = Question(KEY, VERSION, 0.5)
        assert parsed_question(question.encoded()) == question
        answer = Answer("bad", "unsigned", "nobody\nhas", 5)
        assert parsed_answer(answer.encoded()) == answer

    def test_no_answer_is_longer_than_a_line(self):
        answer = Answer("bad", "unsigned", "\U0001f512" * 10**6)
        assert len(answer.encoded()) < 16 * 1024

    def test_each_remote_trust_and_root_has_a_courier_of_its_own(self, locks):
        words = [("/root", "file:///a", "x"), ("/other", "file:///a", "x")]
        words += [("/root", "file:///b", "x"), ("/root", "file:///a", "y")]
        assert len({Meeting.of(locks, *three).socket for three in words}) == 4


class TestOneAtATime:
    def test_whoever_only_looks_keeps_none_from_coming_up(self, meeting, locks, monkeypatch):
        """To look whether a lock is free is to share it for an instant: `gpucache run` of another rank does so."""
        monkeypatch.setattr("gpucache.disk.locks._TRIES", 10_000)  # a busy machine closes late
        path = Path(meeting.lock)
        path.touch()
        looking = path.open()
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.01, looking.close)
        timer.start()
        fd = couriers._locked_for_life(meeting)
        timer.join()
        assert fd is not None
        os.close(fd)


class TestOldFiles:
    def test_those_of_an_earlier_boot_go_after_a_day(self, locks):
        for name in ("remote-1.state", "remote-1.socket", "remote-1.courier", "KEY.lock"):
            path = Path(locks, name)
            path.touch()
            os.utime(path, (1, 1))
        Path(locks, "remote-2.state").touch()
        forget_old(locks)
        assert sorted(os.listdir(locks)) == ["KEY.lock", "remote-2.state"]

    def test_those_of_a_courier_that_lives_stay(self, meeting, locks):
        fd = couriers._locked_for_life(meeting)
        assert fd is not None
        assert couriers._locked_for_life(meeting) is None, "one courier at a time"
        Path(locks, meeting.socket).touch()
        for name in os.listdir(locks):
            os.utime(f"{locks}/{name}", (1, 1))
        forget_old(locks)
        assert len(os.listdir(locks)) == 2
        os.close(fd)
