"""What every command uses to speak: data to stdout, all else to stderr, tables and progress only on a terminal."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # commands that print one path start without typing, json and click
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Literal

    LogLevel = Literal["WARNING", "ERROR", "CRITICAL"]

    from gpucache.errors import GpuCacheError
    from gpucache.findings import Finding

_SHORT = ("key", "arch", "triton", "files", "size", "used")
_BREAKS = "\t\n\r"


def complain(error: GpuCacheError) -> None:
    """Say what is wrong, and the way out."""
    say(f"error: {error.problem}")
    say(f"hint: {error.hint}")


def complain_of_defect() -> None:
    """Show the exception that is being handled, which nobody expected."""
    import traceback

    traceback.print_exc()
    say("error: this is a defect of gpucache; the lines above tell its developers where")


class OutputError(Exception):
    """Stdout took no more."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def print_data(text: str) -> None:
    """Data: the very bytes of a path, whatever the locale."""
    if sys.stdout is None:
        return
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # a product's name, in a locale that lacks its letters
        data = text.encode("utf-8", "surrogateescape")
    try:
        sys.stdout.flush()
        rest = memoryview(data + b"\n")
        while rest:  # unbuffered (`PYTHONUNBUFFERED`), a write may take a part only
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(error) from error


def say(text: str) -> None:
    """Tell the person, not the next program."""
    if sys.stderr is None:
        return  # closed by whoever started us
    try:
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody can be told


def log_to_stderr(level: LogLevel) -> None:
    """Show the library's log from this level on; what a command tells itself it need not say twice."""
    from gpucache.log import before_first_line

    def attach() -> None:
        import logging

        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        handler.setLevel(level)
        logging.getLogger("gpucache").addHandler(handler)

    before_first_line(attach)


def print_json(value: object) -> None:
    """One JSON value, for people to read as well."""
    import json

    print_data(json.dumps(value, indent=2))


def print_json_rows(about: Mapping[str, Any], name: str, rows: Sequence[object]) -> None:
    """One JSON object whose last field is a long list: a line a row, which is five times faster than indenting."""
    import json

    head = json.dumps(about).removesuffix("}")
    if about:
        head += ", "
    body = ",\n".join(map(json.dumps, rows))
    print_data(f"{head}{json.dumps(name)}: [\n{body}\n]}}")


def print_findings(findings: Sequence[Finding], notes: Sequence[str] = ()) -> None:
    """A paragraph each on a terminal, a tab-separated line each when piped; a note, where there is one, for the fix."""
    notes = notes or [""] * len(findings)
    for one, note in zip(findings, notes, strict=True):
        last = note or one.fix
        if is_terminal():
            print_data(printable(f"{one.level}: {one.subject}: {one.fact} [{one.code}]"))
            print_data(printable(f"  {last}"))
        else:
            print_data(_line((one.level, one.code, one.subject, one.fact, last)))


def print_codes(codes: Mapping[str, str], as_json: bool) -> int:
    """Every code of a command's findings; the exit code."""
    if as_json:
        print_json(codes)
    else:
        print_table(("code", "meaning"), list(codes.items()), folded=("meaning",))
    return 0


def is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def check_answerable() -> None:
    """Refuse where a question would not be seen, or not be answered.

    Raises:
        UsageError: there is nobody to ask.
    """
    import click

    streams = (sys.stdin, sys.stderr)
    if any(stream is None or not stream.isatty() for stream in streams):
        raise click.UsageError("nobody can be asked here: say --yes, or --dry-run to look only")


def confirmed(question: str) -> bool:
    """Whether the person says yes.

    Raises:
        Abort: the question was interrupted.
    """
    import click

    try:
        return click.confirm(question, err=True)
    except click.Abort:
        say("")  # what comes next begins a line
        raise


class progress:  # noqa: N801  # used as a function is
    """A bar on a terminal's stderr for what takes longer than a second; None where nobody would see it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def __enter__(self) -> Callable[[int, int], None] | None:
        if sys.stderr is None or not sys.stderr.isatty():
            return None
        self._began = time.monotonic()
        return self._show

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._began < 1:
                return
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=total)
        self._bar.update(self._task, completed=done, total=total)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    folded: Collection[str] = ("path", "uuid"),
) -> None:
    """A table on a terminal; tab-separated lines, without a head, when piped.

    Where the terminal is too narrow, the ``folded`` columns are, since what one copies must be whole; then the rest is
    cut.
    """
    if not is_terminal():
        if rows:
            print_data("\n".join(map(_line, rows)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        overflow: Literal["fold", "ellipsis"] = "fold" if column in folded else "ellipsis"
        table.add_column(column, overflow=overflow, no_wrap=column in _SHORT)
    for row in rows:
        cells = [Text(printable(cell)) for cell in row]  # as text: a path may look like markup
        table.add_row(*cells)
    import io

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter that the locale lacks
    try:
        Console().print(table)
    except OSError as error:
        raise OutputError(error) from error


def printable(text: str) -> str:
    """The text, with what would move the cursor, or cannot be shown, as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _line(cells: Sequence[str]) -> str:
    """Cells that a tab separates, on one line whatever is in them."""
    return "\t".join(_without_breaks(cell) for cell in cells)


def _without_breaks(cell: str) -> str:
    for letter in _BREAKS:
        if letter in cell:
            cell = cell.replace(letter, _escape(letter))
    return cell


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
