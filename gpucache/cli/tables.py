"""Tables for people, as wide as their terminal, and tab-separated lines for the next program of a pipe.

Where a terminal is too narrow, whole columns are left out, those of least weight first; no name and no number is cut,
so that what is seen can be copied.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import click

from gpucache.cli.styled import styled_output
from gpucache.cli.table_layout import ALWAYS, Layout
from gpucache.cli.table_layout import MATTERS as MATTERS
from gpucache.cli.table_layout import Column as Column
from gpucache.cli.terminal import has_reports, is_terminal, print_data, print_json, say
from gpucache.escapes import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

_NOTHING = ("", "-")
"""Cells that say nothing; a column of such alone is not shown, and no note is made of it."""


class Choice(NamedTuple):
    """What a person chose of a table's columns; by itself, what fits the terminal is shown."""

    wide: bool = False
    """All, however wide the lines become."""
    names: tuple[str, ...] | None = None
    """These, in this order, and nothing else."""


def table_options(
    columns: Sequence[Column], or_these: Sequence[Column] = ()
) -> Callable[[Any], Any]:
    """The options ``--wide`` and ``--columns`` of a command that prints a table, as ``wide`` and ``columns``.

    ``or_these`` are the columns of another table that the command may print instead: then `check_columns` is for the
    command to call.
    """
    names = [column.name for column in columns]
    all_names = [*names, *(column.name for column in or_these)]

    def known(
        context: click.Context, option: click.Parameter, value: str | None
    ) -> tuple[str, ...] | None:
        if value is None:
            return None
        asked = tuple(name.strip() for name in value.split(",") if name.strip())
        if not asked:
            raise click.BadParameter(f"it names no column of {', '.join(names)}")
        _check(asked, all_names, names)
        return asked

    chosen = click.option(
        "--columns",
        metavar="NAME,NAME",
        callback=known,
        help="These columns, in this order: " + ", ".join(names) + ".",
    )
    wide = click.option("--wide", is_flag=True, help="All columns, however wide the terminal is.")

    def both(command: Any) -> Any:
        return wide(chosen(command))

    return both


def check_columns(asked: Sequence[str] | None, columns: Sequence[Column]) -> None:
    """Refuse what ``--columns`` names and this table has not.

    Raises:
        click.BadParameter: there is no such column.
    """
    names = [column.name for column in columns]
    _check(asked or (), names, names)


def _check(asked: Iterable[str], known: Sequence[str], told: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            problem = f"there is no column {name!r}, but {', '.join(told)}"
            raise click.BadParameter(problem, param_hint="'--columns'")


def print_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    total: Sequence[str] | None = None,
    *,
    choice: Choice | None = None,
    piped: Sequence[str] = (),
) -> None:
    """Print a table on a terminal, with ``total`` as its last line; tab-separated lines without both when piped.

    Each row has a cell for each column. ``choice`` is what ``--wide`` and ``--columns`` of the command said; None for
    a command without them. ``piped`` names the columns in the order of the piped lines, where that is another one.

    Raises:
        OutputError: stdout cannot be written.
    """
    if not has_reports():
        return
    chosen = choice or Choice()
    listed = [tuple(map(printable, row)) for row in rows]
    if not is_terminal():
        names = chosen.names or piped
        if listed:
            print_data("\n".join(map("\t".join, _picked(columns, listed, names)[1])))
        return
    last = [] if total is None else [tuple(map(printable, total))]
    shown, cells = _picked(columns, [*listed, *last], chosen.names or ())
    if not listed:
        return
    if chosen.names is None:
        shown, cells = _with_something(shown, cells)
    room = None if chosen.wide or chosen.names else shutil.get_terminal_size().columns
    layout = Layout(shown, cells, room)
    _print(layout, cells)
    if layout.left_out or layout.counts_items:
        say(_note(layout, room, choice))


def print_codes(codes: Mapping[str, str], as_json: bool) -> int:
    """Print every code that a command's findings may have, and what it means; returns the exit code."""
    if as_json:
        print_json({"codes": dict(codes)})
    else:
        print_table((Column("code"), Column("meaning", whole=False)), list(codes.items()))
    return 0


def _picked(
    columns: Sequence[Column], rows: Sequence[tuple[str, ...]], names: Sequence[str]
) -> tuple[list[Column], list[tuple[str, ...]]]:
    """The columns of these names, in their order, and of each row the cells of these; without names all."""
    if not names:
        return list(columns), list(rows)
    places = {column.name: number for number, column in enumerate(columns)}
    numbers = [places[name] for name in names]
    picked = [tuple([row[number] for number in numbers]) for row in rows]
    return [columns[number] for number in numbers], picked


def _with_something(
    columns: Sequence[Column], rows: Sequence[tuple[str, ...]]
) -> tuple[list[Column], list[tuple[str, ...]]]:
    """The columns that say something, or are always there, and of each row the cells of these."""
    names = []
    for number, column in enumerate(columns):
        is_empty = all(row[number] in _NOTHING for row in rows)
        if column.weight >= ALWAYS or not is_empty:
            names.append(column.name)
    return _picked(columns, rows, names)


def _note(layout: Layout, room: int | None, choice: Choice | None) -> str:
    """What to say of what is not shown, and how it can be seen."""
    parts = []
    if layout.left_out:
        parts.append(f"without {', '.join(layout.left_out)}")
    if layout.counts_items:
        parts.append("+N for N more")
    how = "a wider terminal or --json shows all"
    if choice is not None:
        how = "--wide shows all, --columns a,b some"
    return f"note: {room} columns wide: {'; '.join(parts)}; {how}"


# ---- printing


def _print(layout: Layout, rows: Sequence[Sequence[str]]) -> None:
    """Print the head and the rows.

    Raises:
        OutputError: stdout cannot be written.
    """
    from rich.text import Text

    lines: list[str] = []
    for row in rows:
        lines += layout.lines(row)
    with styled_output() as console:
        console.print(Text(layout.head(), "bold"), soft_wrap=True)
        console.out("\n".join(lines), highlight=False)
