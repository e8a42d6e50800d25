from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial

import click
import pytest
from support.terminals import Terminal, put_terminal

from gpucache.cli import terminal
from gpucache.cli.terminal import (
    check_answerable,
    progress,
    say,
)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Put a terminal in the place of a stream, from inside the test: pytest puts its own there before."""
    return partial(put_terminal, monkeypatch)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestProgress:
    def test_is_shown_after_a_second_and_not_before(self, show, clock):
        stderr = show("stderr")
        with progress("looking") as tell:
            tell(1, 10)
            clock.now += 0.9
            tell(2, 10)
            assert stderr.seen == ""
            clock.now += 0.2
            tell(5, 10)
        assert "looking" in stderr.seen
        assert "50%" in stderr.seen

    def test_what_is_fast_shows_nothing(self, show, clock):
        stderr = show("stderr")
        with progress("looking") as tell:
            for number in range(10):
                tell(number, 10)
        assert stderr.seen == ""

    def test_ends_when_the_work_fails(self, show, clock):
        stderr = show("stderr")

        def work() -> None:
            with progress("looking") as tell:
                clock.now += 2
                tell(1, 2)
                raise KeyError

        with pytest.raises(KeyError):
            work()
        assert stderr.seen.endswith("\x1b[2K") or "\x1b[?25h" in stderr.seen

    @pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "piped"])
    def test_is_for_terminals_only(self, stream, monkeypatch):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("looking") as tell:
            assert tell is None

    def test_loads_no_library_before_it_is_shown(self, python):
        code = (
            "import io, sys; sys.stderr = io.StringIO(); sys.stderr.isatty = lambda: True\n"
            "from gpucache.cli.terminal import progress\n"
            "with progress('looking') as show: show(1, 2)\n"
            "print('rich' in sys.modules)"
        )
        assert python(code).stdout == "False\n"


class TestQuestions:
    @pytest.mark.parametrize("closed", ["stdin", "stderr"])
    @pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "piped"])
    def test_nobody_is_asked_who_cannot_see_it_or_answer(self, closed, stream, monkeypatch):
        for name in ("stdin", "stderr"):
            monkeypatch.setattr(sys, name, Terminal())
        check_answerable()
        monkeypatch.setattr(sys, closed, stream)
        with pytest.raises(click.UsageError, match="nobody can be asked here"):
            check_answerable()


def test_what_is_told_cannot_move_the_cursor(capsys):
    say("note: /root/\x1b[2J\n")
    assert capsys.readouterr().err == "note: /root/\\x1b[2J\\n\n"


def test_a_closed_stderr_hears_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert say("note") is None


def test_a_refusal_names_the_path_or_what_was_done_by_a_descriptor_none():
    assert terminal.refused(OSError(5, "Input/output error", "/a")) == "/a: Input/output error"
    assert terminal.refused(OSError(5, "Input/output error", 7)) == "Input/output error"
    assert terminal.refused(OSError("odd")) == "odd"
