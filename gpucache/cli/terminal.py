"""How every command speaks: data goes to stdout, all else to stderr, tables and progress only to a terminal."""

from __future__ import annotations

import os
import sys
import time

from gpucache.escapes import printable

TYPE_CHECKING = False  # commands that print one path start without typing, json and click
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, BinaryIO, Literal, Protocol, TextIO

    class Show(Protocol):
        """What a `progress` gives: it is told how much is done, how much there is, and perhaps what is being done."""

        def __call__(self, done: int, total: int, what: str | None = None) -> None:
            """Draw the bar again, if it is time."""

    LogLevel = Literal["WARNING", "ERROR", "CRITICAL"]


_PATIENCE_S, _DRAWN_S = 1.0, 0.1
"""For how long no bar is shown, and how often it is drawn then."""


def refused(error: OSError) -> str:
    """What the operating system refused, in words, and of which path, where the error names one."""
    why = error.strerror or str(error)
    path = error.filename
    # What was done by a descriptor has its number there.
    return f"{os.fsdecode(path)}: {why}" if isinstance(path, (str, bytes)) else why


class OutputError(Exception):
    """Stdout could not be written: its reader has gone, or its disk is full."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def print_data(text: str) -> None:
    """Print data and the end of a line to stdout: of a path its very bytes, whatever the locale.

    Raises:
        OutputError: stdout cannot be written.
    """
    if has_reports():
        _print(text)


def _print(text: str) -> None:
    """As `print_data`, however quiet the command is."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # a product's name, in a locale that lacks its letters
        data = text.encode("utf-8", "surrogateescape")
    _write(data + b"\n")


def print_bytes(data: bytes) -> None:
    """Print the very bytes of a file to stdout; on a terminal a text that can do nothing there, line by line.

    Raises:
        OutputError: stdout cannot be written.
    """
    if is_terminal():
        lines = data.decode(errors="replace").splitlines()
        print_data("\n".join(map(shown_line, lines)))
        return
    _write(data)


def _write(data: bytes) -> None:
    """Write bytes to stdout, unless that was closed before Python started.

    Raises:
        OutputError: stdout cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        write_all(sys.stdout.buffer, data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(error) from error


def write_all(out: BinaryIO, data: bytes) -> None:
    """Write all of these bytes to a stream, of which a write may take a part only (stdout by `PYTHONUNBUFFERED`)."""
    rest = memoryview(data)
    while rest:
        written = out.write(rest)
        rest = rest[written:]


def shown_line(line: str) -> str:
    """A line of a text as it is safe to show; tabs stay."""
    return "\t".join(map(printable, line.split("\t")))


_COLOURS = {"error": "1;31", "warning": "1;33", "hint": "36", "note": "2"}
"""The first word of a line on stderr is its level; how a terminal shows each (ECMA-48, SGR)."""
_silent: set[str] = set()
"""What is not printed: ``notes`` on stderr, ``reports`` on stdout."""


def be_quiet(*, reports: bool) -> None:
    """Say no notes from now on, and show no bars; with ``reports``, print nothing to stdout but JSON."""
    _silent.add("notes")
    if reports:
        _silent.add("reports")


def has_reports() -> bool:
    """Whether the command prints to stdout what is neither JSON nor a file's content."""
    return "reports" not in _silent


def begin() -> None:
    """Speak as usual, as each command begins."""
    _silent.clear()


def say(text: str) -> None:
    """Write a line to stderr, for a person and not for the next program. Never raises.

    The line begins with its level and a colon (``error``, ``hint``, ``warning``, ``note``), which a terminal shows in
    colour.
    """
    if sys.stderr is None:
        return  # closed by the process that started this one
    level, colon, rest = text.partition(":")
    if level == "note" and "notes" in _silent:
        return
    line = printable(text)
    if colon and level in _COLOURS and _has_colours(sys.stderr):
        line = f"\033[{_COLOURS[level]}m{level}:\033[0m{printable(rest)}"
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # there is no other way to tell a person


def end_streams() -> None:
    """Have what stdout and stderr did not take, as where their disk is full, go nowhere: all is told that can be told.

    Python writes it once more at its end, and ends with 120 where that fails.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is None:
            continue  # closed by the process that started this one
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)


def _has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody has said no to them (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and is_capable() and has_person(stream)


def is_capable() -> bool:
    """Whether the terminal that the environment names does more than show letters, such as colours and a cursor."""
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def log_to_stderr(level: LogLevel) -> None:
    """Show the library's log on stderr from this level on. A command chooses it so that nothing is told twice."""
    from gpucache.log import before_first_line, tell_whoever_tells

    tell_whoever_tells()

    def attach() -> None:
        import logging

        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        handler.setLevel(level)
        logging.getLogger("gpucache").addHandler(handler)

    before_first_line(attach)


JSON_FORMAT = 1
"""The first field of each object that a command prints. Another number says that a field has gone, or means another
thing; a new field changes nothing."""


def print_json(fields: Mapping[str, Any]) -> None:
    """Print a JSON object to stdout, its ``format`` first, indented, so that people can read it as well.

    That was asked for, and is printed however quiet the command is.

    Raises:
        OutputError: stdout cannot be written.
    """
    _print(_encoded({"format": JSON_FORMAT, **fields}, indent=2))


def print_json_rows(about: Mapping[str, Any], name: str, rows: Sequence[object]) -> None:
    """Print a JSON object as `print_json`, whose last field is a long list, one line for each row.

    That is five times faster than `print_json`, which indents.
    """
    fields = {"format": JSON_FORMAT, **about}
    head = _encoded(fields).removesuffix("}") + ", "
    body = ",\n".join(map(_encoded, rows))
    _print(f"{head}{_encoded(name)}: [\n{body}\n]}}")


def _encoded(value: object, indent: int | None = None) -> str:
    """A value as JSON, which has no infinity and no NaN, whatever the files say from which the value comes: null."""
    import json

    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with None in the place of each number that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_finite, value))
    if isinstance(value, float) and value - value != 0:  # infinite, or NaN
        return None
    return value


def print_lines(rows: Iterable[Sequence[str]]) -> None:
    """Print tab-separated lines for the next program of a pipe.

    Raises:
        OutputError: stdout cannot be written.
    """
    for cells in rows:
        print_data(_line(cells))


def is_terminal() -> bool:
    """Whether a person reads stdout."""
    return has_person(sys.stdout)


def has_person(stream: TextIO | None) -> bool:
    """Whether a person is at the other end of a stream; None is a stream that was closed before Python started."""
    return stream is not None and stream.isatty()


def check_answerable() -> None:
    """Raise where no person would see a question on stderr, or answer it on stdin.

    Raises:
        UsageError: stdin or stderr is no terminal.
    """
    from gpucache.cli.usage import WrongUseError

    if not has_person(sys.stdin) or not has_person(sys.stderr):
        raise WrongUseError("nobody can be asked here", "say --yes, or --dry-run to look only")


def confirmed(question: str) -> bool:
    """Ask a question on stderr; returns whether the person's answer is yes.

    Raises:
        Abort: the person interrupted the question.
    """
    import click

    try:
        return click.confirm(question, err=True)
    except click.Abort:
        say("")  # what comes next begins a line
        raise


class progress:  # noqa: N801  # used as a function is
    """Shows a bar on stderr while work goes on that takes longer than a second.

    ``with progress("looking") as show`` gives a function that is told how much of the work is done, and how much there
    is; None where stderr is no terminal.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def __enter__(self) -> Show | None:
        if not has_person(sys.stderr) or "notes" in _silent:
            return None
        self._next = time.monotonic() + _PATIENCE_S
        return self._show

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, done: int, total: int, what: str | None = None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _DRAWN_S
        if self._bar is None:
            self._start(total)
        text = {} if what is None else {"description": self._as_text(what)}
        self._bar.update(self._task, completed=done, total=total, refresh=True, **text)

    @staticmethod
    def _as_text(what: str) -> str:
        """The text, in which a name may look like markup, or command a terminal."""
        from rich.markup import escape

        return escape(printable(what))

    def _start(self, total: int) -> None:
        """Show the bar, which vanishes when the work is done."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        # By itself it would draw in a thread, and a limit on processes forbids any.
        self._bar = Progress(console=console, transient=True, auto_refresh=False)
        self._bar.start()
        self._task = self._bar.add_task(self._what, total=total)


def _line(cells: Sequence[str]) -> str:
    """The cells on one line, with tabs between them: nothing that is in a cell ends or splits that.

    Nor can it command the terminal to which the next program of the pipe writes. JSON has the very letters.
    """
    return "\t".join(map(printable, cells))
