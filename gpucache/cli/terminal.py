"""What every command uses to speak: data to stdout, all else to stderr, tables and progress only on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from gpucache.errors import GpuCacheError
    from gpucache.findings import Finding

_SHORT = ("key", "arch", "triton", "files", "size", "used")
_BREAK = re.compile(r"[\t\n\r]")

# Not readable: whether a directory may be used is for vetting to say, with its reasons.
root_option = click.option(
    "--root",
    type=click.Path(readable=False),
    help="Cache root, instead of $GPUCACHE_DIR and torch's default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
codes_option = click.option(
    "--codes", is_flag=True, help="Only list every code of a finding, and what it means."
)


def complain(error: GpuCacheError) -> None:
    """What is wrong, and the way out."""
    say(f"error: {error.problem}")
    say(f"hint: {error.hint}")


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
        click.echo(printable(text), err=True)
    except (OSError, ValueError):
        return  # nobody can be told


def log_to_stderr(level: str) -> None:
    """Show the library's log; what a command tells itself it need not say twice."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(level)
    logging.getLogger("gpucache").addHandler(handler)


def print_json(value: object) -> None:
    """One JSON value, for people to read as well."""
    print_data(json.dumps(value, indent=2))


def print_json_rows(about: Mapping[str, Any], name: str, rows: Sequence[object]) -> None:
    """One JSON object whose last field is a long list: a line a row, which is five times faster than indenting."""
    head = json.dumps(about)[:-1]
    body = ",\n".join(map(json.dumps, rows))
    print_data(f"{head}{', ' if about else ''}{json.dumps(name)}: [\n{body}\n]}}")


def print_findings(findings: Sequence[Finding], notes: Sequence[str] = ()) -> None:
    """A paragraph each on a terminal, a tab-separated line each when piped; a note, where there is one, for the fix."""
    for one, note in zip(findings, notes or [""] * len(findings), strict=True):
        if is_terminal():
            print_data(printable(f"{one.level}: {one.subject}: {one.fact} [{one.code}]"))
            print_data(printable(f"  {note or one.fix}"))
        else:
            print_data(_line((one.level, one.code, one.subject, one.fact, note or one.fix)))


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
    if any(stream is None or not stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise click.UsageError("nobody can be asked here: say --yes, or --dry-run to look only")


def confirmed(question: str) -> bool:
    """Whether the person says yes.

    Raises:
        Abort: the question was interrupted.
    """
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        say("")  # what comes next begins a line
        raise


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr for what takes longer than a second; None where nobody would see it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(what)
    try:
        yield bar.show
    finally:
        bar.close()


class _Bar:
    def __init__(self, what: str) -> None:
        self.what = what
        self.began = time.monotonic()
        self.shown: Any = None

    def show(self, done: int, total: int) -> None:
        if self.shown is None:
            if time.monotonic() - self.began < 1:
                return
            from rich.console import Console
            from rich.progress import Progress

            self.shown = Progress(console=Console(stderr=True), transient=True)
            self.shown.start()
            self.task = self.shown.add_task(self.what, total=total)
        self.shown.update(self.task, completed=done, total=total)

    def close(self) -> None:
        if self.shown is not None:
            self.shown.stop()


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
        # as text: a path may look like markup
        table.add_row(*(Text(printable(cell)) for cell in row))
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
    return "\t".join(_BREAK.sub(lambda found: _escape(found[0]), cell) for cell in cells)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
