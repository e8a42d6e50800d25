"""The command `gpucache compare`, which shows two kernels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gpucache.cli.common import command_settings, existing, one_entry
from gpucache.cli.options import json_option, root_option
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, say
from gpucache.cli.text_diff import print_diff
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.diagnosis.comparison import Row
    from gpucache.report.entries import Entry

_ALWAYS = ("needs",)
"""Parts of which all is shown, whether it differs or not."""


@click.command()
@click.argument("key")
@click.argument("other", metavar="KEY")
@click.option(
    "--diff",
    "form",
    metavar="FORM",
    help="Only the unified diff of this form: ttir, ttgir, llir, ptx, sass, json, source.",
)
@click.option("--raw", is_flag=True, help="With --diff: line numbers, locations and addresses too.")
@click.option("--all", "all_", is_flag=True, help="Also what both kernels have in common.")
@root_option
@json_option
def compare(
    key: str, other: str, form: str | None, raw: bool, all_: bool, root: str | None, as_json: bool
) -> None:
    """Show two kernels side by side: what differs of constants, types and options, and what each needs.

    A KEY is a key, or what only one key begins with. Registers, spills, shared memory and the number of instructions
    (where a disassembler is found) are shown in any case.

    \b
    gpucache compare JRCHT7QYPGJA 3OBGYLUHQ4TL
    gpucache compare JRCHT7QYPGJA 3OBGYLUHQ4TL --diff ttgir
    gpucache compare JRCHT7QYPGJA 3OBGYLUHQ4TL --diff sass | less
    """
    from gpucache.diagnosis.comparison import compare as side_by_side

    if raw and form is None:
        raise click.UsageError("--raw is for --diff")
    where = existing(root)
    a, b = one_entry(where, key), one_entry(where, other)
    if a.key == b.key:
        say(f"note: both are {a.kernel} {a.key}")
    if form is not None:
        _diff(a, b, form, raw, as_json)
        return
    rows = side_by_side(a, b, command_settings())
    if as_json:
        print_json({"a": a.key, "b": b.key, "rows": list(map(_row, rows))})
        return
    shown = [row for row in rows if all_ or row.differs or row.part in _ALWAYS]
    cells = [_cells(row, human=is_terminal()) for row in shown]
    columns = (
        Column("what", 10),
        Column("name"),
        Column(a.key[:12], whole=False),
        Column(b.key[:12], whole=False),
    )
    print_table(columns, cells)
    if is_terminal():
        _say_more(rows)


def _row(row: Row) -> dict[str, object]:
    return {**row._asdict(), "differs": row.differs}


def _cells(row: Row, human: bool) -> tuple[str, ...]:
    return row.part, row.name, _cell(row, row.a, human), _cell(row, row.b, human)


def _cell(row: Row, value: str | int | None, human: bool) -> str:
    is_bytes = row.part == "bytes" or row.name.endswith("_bytes")
    if human and is_bytes and isinstance(value, int):
        return size(value)
    return "-" if value is None else str(value)


def _say_more(rows: Sequence[Row]) -> None:
    """Say how much is the same, and how the code is compared."""
    same = sum(not row.differs for row in rows)
    say(f"note: {same} more are the same (--all); --diff ttgir, ptx or sass compares the code")


def _diff(a: Entry, b: Entry, form: str, raw: bool, as_json: bool) -> None:
    from gpucache.diagnosis.comparison import text_difference
    from gpucache.report.artefacts import form_of

    form = form_of(a, form)
    lines = text_difference(a, b, form, command_settings(), raw=raw)
    if as_json:
        print_json({"a": a.key, "b": b.key, "form": form, "diff": lines})
    elif lines:
        print_diff(lines)
    else:
        say(f"note: their {form} is the same")
