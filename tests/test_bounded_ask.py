"""A question that is not answered: whoever asked goes on, and nothing is done for him any more."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S

from gpucache.store.manifest import entry_path
from gpucache.store.turn import Turn
from gpucache.triton import bounded_ask
from gpucache.triton.bounded_ask import ask
from gpucache.triton.manager import current_location

SOON_S = 0.05


@pytest.fixture(autouse=True)
def nothing_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_ask, "_unanswered", {})


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """Set, a question is answered; at the end of a test each is."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "gpucache-fallback":
            thread.join(PATIENCE_S)


def test_an_answer_is_given_and_an_error_raised():
    assert ask("place", lambda turn: "answer") == "answer"
    with pytest.raises(KeyError):
        ask("place", lambda turn: {}["nothing"])


def test_what_is_silent_for_too_long_is_left_and_does_nothing_any_more(answer):
    acted = []

    def question(turn: Turn) -> str:
        answer.wait(PATIENCE_S)
        acted.append(turn.may_act())
        return "late"

    assert ask("place", question, SOON_S) is None
    (thread,) = [one for one in threading.enumerate() if one.name == "gpucache-fallback"]
    answer.set()
    thread.join(PATIENCE_S)
    assert acted == [False]


def test_another_question_about_the_place_is_not_asked_until_the_first_is_over(answer):
    assert ask("place", lambda turn: answer.wait(PATIENCE_S), SOON_S) is None
    assert ask("place", pytest.fail) is None
    assert ask("elsewhere", lambda turn: "answer") == "answer"
    answer.set()
    bounded_ask._unanswered["place"].join(PATIENCE_S)
    assert ask("place", lambda turn: "answer") == "answer"


def test_who_gets_on_may_take_longer():
    def question(turn: Turn) -> str:
        over = threading.Event()
        for _ in range(20):
            over.wait(SOON_S / 5)
            turn.beat()
        return "answer"

    assert ask("place", question, SOON_S * 10) == "answer"


def test_who_acts_already_is_waited_for(answer):
    """What it does by then is on the own disk, and others see it."""

    def question(turn: Turn) -> str:
        assert turn.may_act()
        threading.Timer(SOON_S * 3, answer.set).start()
        answer.wait(PATIENCE_S)
        return "answer"

    assert ask("place", question, SOON_S) == "answer"


def test_without_a_thread_it_is_asked_all_the_same(monkeypatch):
    def refused(thread: threading.Thread) -> None:
        raise OSError(11, "no more threads")

    monkeypatch.setattr(bounded_ask, "start", refused)
    assert ask("place", lambda turn: "answer") == "answer"


def test_a_handler_that_raises_leaves_the_question(answer):
    acted = []

    def question(turn: Turn) -> None:
        os.kill(os.getpid(), signal.SIGALRM)
        answer.wait(PATIENCE_S)
        acted.append(turn.may_act())

    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask("place", question, PATIENCE_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    (thread,) = [one for one in threading.enumerate() if one.name == "gpucache-fallback"]
    answer.set()
    thread.join(PATIENCE_S)
    assert acted == [False]


def test_a_mount_whose_server_hangs_costs_its_limit_once_and_is_asked_again(
    fuse, tmp_path, monkeypatch, caplog
):
    """A real mount: the process that serves it is stopped, and goes on later."""
    shared, there, own = tmp_path / "shared", tmp_path / "there", tmp_path / "own"
    monkeypatch.setenv("GPUCACHE_DIR", str(shared))
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{shared}/triton/0")
    another_process(monkeypatch)
    kernels = [kernel(seed) for seed in ("first", "second", "third")]
    for key, files in kernels:
        launched(key, files)
    there.mkdir()
    with subprocess.Popen(["bindfs", "-f", str(shared), str(there)]) as server:
        try:
            wait_until_mounted(there)
            monkeypatch.setenv("GPUCACHE_DIR", str(own))
            monkeypatch.setenv("TRITON_CACHE_DIR", f"{own}/triton/0")
            monkeypatch.setenv("GPUCACHE_FALLBACK", str(there))
            monkeypatch.setattr(bounded_ask.ask, "__defaults__", (0.5,))
            another_process(monkeypatch)
            server.send_signal(signal.SIGSTOP)
            for key, files in kernels[:2]:
                assert launched(key, files) == (False, files)
            (said,) = [one for one in caplog.messages if "does not answer" in one]
            assert said.startswith(f"the fallback cannot be read: {there} does not answer; ")
            server.send_signal(signal.SIGCONT)
            bounded_ask._unanswered[str(there)].join(PATIENCE_S)
            key, files = kernels[2]
            assert launched(key, files) == (True, files)
            assert Path(entry_path(str(own), key)).exists()
        finally:
            server.send_signal(signal.SIGCONT)
            subprocess.run(["umount", "-l", there], check=False)
    current_location().stats.leave()


def wait_until_mounted(point: Path) -> None:
    over = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if os.path.ismount(point):
            return
        over.wait(0.02)
    raise AssertionError("it is not mounted")
