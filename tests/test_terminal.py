from __future__ import annotations

import io
import sys
from collections.abc import Callable

import click
import pytest

from gpucache.cli import terminal
from gpucache.cli.terminal import (
    OutputError,
    check_answerable,
    print_findings,
    print_table,
    progress,
    say,
)
from gpucache.escapes import printable
from gpucache.findings import Finding


class Terminal(io.TextIOWrapper):
    """A terminal that keeps what it is shown."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def seen(self) -> str:
        return self.buffer.getvalue().decode()


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Put a terminal in the place of a stream, from inside the test: pytest puts its own there before."""

    def put(stream: str, encoding: str = "utf-8") -> Terminal:
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("TERM", "xterm" if stream == "stderr" else "dumb")
        monkeypatch.setattr(sys, stream, Terminal(encoding))
        return getattr(sys, stream)

    return put


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


class TestTables:
    def test_a_terminal_gets_aligned_columns_with_a_head(self, show):
        stdout = show("stdout")
        print_table(("name", "size"), [("a", "1 B"), ("long", "20 B")])
        assert [line.rstrip() for line in stdout.seen.splitlines()] == [
            "name  size",
            "a     1 B",
            "long  20 B",
        ]

    def test_what_is_folded_stays_whole_and_the_rest_is_cut(self, show):
        stdout = show("stdout")
        print_table(("path", "kernel"), [("p" * 70, "k" * 70)])
        assert stdout.seen.count("p") == 70 + 1
        assert "…" in stdout.seen
        print_table(("path", "kernel"), [("q" * 70, "r" * 70)], folded=("kernel",))
        assert stdout.seen.count("r") == 70 + 2

    @pytest.mark.parametrize(
        ("cell", "shown"),
        [
            ("[red]x[/red] [/] [0]", "[red]x[/red] [/] [0]"),
            ("\x1b[31mred", "\\x1b[31mred"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("n\udcff", "n\\udcff"),
            ("é 漢", "é 漢"),
        ],
    )
    def test_whatever_a_name_is_the_terminal_shows_it_and_obeys_nothing(self, cell, shown, show):
        stdout = show("stdout")
        print_table(("name",), [(cell,)])
        assert stdout.seen.splitlines()[1].rstrip() == shown
        assert printable(cell) == shown

    def test_letters_that_the_locale_lacks_are_escaped(self, show):
        stdout = show("stdout", "ascii")
        print_table(("name",), [("é",)])
        assert stdout.seen.splitlines()[1].rstrip() == "\\xe9"

    def test_piped_each_row_is_one_line_that_commands_no_terminal(self, capfdbinary):
        """The next program of the pipe may be `cat`."""
        print_table(("name", "path"), [("é", "n\udcff"), ("a\tb", "c\nd\r\x1b[2J\u202e")])
        said = b"n\\udcff\n" + b"a\\tb\tc\\nd\\r\\x1b[2J\\u202e\n"
        assert capfdbinary.readouterr().out == "é\t".encode() + said

    def test_no_rows_are_no_output_when_piped(self, capfdbinary):
        print_table(("name",), [])
        assert capfdbinary.readouterr().out == b""

    def test_a_terminal_that_is_gone_is_no_defect(self, monkeypatch):
        class Gone(Terminal):
            def write(self, text: str) -> int:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(OutputError) as caught:
            print_table(("name",), [("a",)])
        assert caught.value.cause.errno == 5


class TestFindings:
    FINDINGS = (
        Finding("code", "error", "/a\nb", "it is [wrong]", "mend it"),
        Finding("other", "warning", "X", "y", "z"),
    )

    def test_piped_they_are_lines(self, capfdbinary):
        print_findings(self.FINDINGS, ["mended", ""])
        assert capfdbinary.readouterr().out == (
            b"error\tcode\t/a\\nb\tit is [wrong]\tmended\nwarning\tother\tX\ty\tz\n"
        )

    def test_on_a_terminal_they_are_paragraphs(self, show):
        stdout = show("stdout")
        print_findings(self.FINDINGS)
        assert (
            stdout.seen
            == "error: /a\\nb: it is [wrong] [code]\n  mend it\nwarning: X: y [other]\n  z\n"
        )


class TestQuestions:
    @pytest.mark.parametrize("closed", ["stdin", "stderr"])
    @pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "piped"])
    def test_nobody_is_asked_who_cannot_see_it_or_answer(self, closed, stream, monkeypatch):
        for name in ("stdin", "stderr"):
            monkeypatch.setattr(sys, name, Terminal())
        check_answerable()
        monkeypatch.setattr(sys, closed, stream)
        with pytest.raises(click.UsageError, match="say --yes"):
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
