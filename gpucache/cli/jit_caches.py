"""The command `gpucache caches`: every JIT cache of the node, what is in force in this process, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.options import json_option, root_option
from gpucache.cli.settings import settings_of
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, say
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.directories.jit_in_force import InForce

_COLUMNS = (
    Column("name"),
    Column("here"),
    Column("variable", weight=10),
    Column("directory", weight=20),
    Column("size", weight=30, right=True),
    Column("why", whole=False),
)


@click.command()
@root_option
@json_option
def caches(root: str | None, as_json: bool) -> None:
    """Show every JIT cache that `run --caches` knows: what is in force here and why, where it writes, what it holds.

    Here: `in force`, set by gpucache; `yours`, set by you; `not set`, and what would set it; or why it cannot be had.

    \b
    gpucache caches
    gpucache run --caches all -- gpucache caches
    """
    # Only when called: the help of all commands imports this module.
    from gpucache.directories.jit_in_force import in_force
    from gpucache.layout.paths import resolve_root

    settings = settings_of(root)
    where = resolve_root(root, settings)
    rows = [_row(where, row) for row in in_force(where, os.environ, settings)]
    if as_json:
        print_json({"root": where, "caches": rows})
        return
    human = is_terminal()
    lines = [_cells(row, where, human) for row in rows]
    print_table(_COLUMNS, lines)
    if human:
        say(f"note: directories without a / in front are in {where}")


def _row(root: str, row: InForce) -> dict[str, Any]:
    """The fields of one cache by name, for JSON."""
    from gpucache.directories.jit_directories import counted
    from gpucache.layout.jit_caches import SET_ANYWAY
    from gpucache.layout.paths import jit_directory

    files: int | None = None
    taken: int | None = None
    is_all = True
    if row.name not in SET_ANYWAY:  # `du` counts those, each file once
        files, taken, is_all = counted(row.directory or jit_directory(root, row.name))
    return {
        "name": row.name,
        "here": row.state,
        "why": row.why,
        "variable": row.variable,
        "directory": row.directory,
        "kind": row.kind,
        "software": row.software,
        "versions": row.versions,
        "holds": row.holds,
        "files": files,
        "logical_bytes": taken,
        "counted_all": is_all,
    }


def _cells(row: dict[str, Any], root: str, human: bool) -> tuple[str, ...]:
    """What a person or a pipe sees of a cache; to a person, the paths in the root are short."""
    directory = row["directory"] or ""
    if human:
        directory = directory.removeprefix(f"{root}/")
    taken = row["logical_bytes"]
    shown = "" if taken is None else str(taken)
    if human and taken is not None:
        shown = size(taken)
    if human and not row["counted_all"]:
        shown = f"> {shown}"
    return (
        row["name"],
        row["here"],
        row["variable"] or "",
        directory,
        shown,
        row["why"],
    )
