"""The commands `remote ls` and `remote check`, which look at a remote and change nothing in any cache."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import command_settings
from gpucache.cli.groups import SuggestingGroup, quiet_option
from gpucache.cli.options import json_option
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, print_json_rows, say
from gpucache.cli.transfer_remote import named_remote, remote_option
from gpucache.units import ago, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpucache.remote.remote import CheckStep, Listed, Remote

_MOST = 100_000
"""A remote may list for ever."""


_PACKS = (
    Column("name"),
    Column("size", weight=20, right=True),
    Column("put", weight=10, right=True),
)
_ENTRIES = (
    Column("key"),
    Column("triton", weight=30),
    Column("size", weight=20, right=True),
    Column("put", weight=10, right=True),
)
_STEPS = (
    Column("step"),
    Column("outcome"),
    Column("ms", weight=10, right=True),
    Column("fact", whole=False),
)


@click.group(cls=SuggestingGroup, no_args_is_help=False)
@json_option
@quiet_option
def remote(as_json: bool, quiet: bool) -> None:
    """Look at a remote: what lies there, and whether all works that is needed of it.

    \b
    gpucache remote check --remote 's3://bucket/kernels?mode=write'
    gpucache remote ls
    """


@remote.command()
@click.option("--entries", is_flag=True, help="The single entries instead of the packs.")
@remote_option
@json_option
def ls(entries: bool, remote: str | None, as_json: bool) -> None:
    """List the packs on a remote: name, size, and when each was put.

    With --entries the entries that were put one by one: key, version of Triton, size, time. Nothing that is listed has
    been verified: `pull` does that.
    """
    from gpucache.remote.opening import open_remote

    url = named_remote(remote)
    opened = open_remote(url, command_settings())
    found = _entries(opened) if entries else _packs(opened)
    rows = list(islice(found, _MOST + 1))
    if len(rows) > _MOST:
        rows.pop()
        say(f"warning: {url.shown} lists more than {_MOST}, of which these are the first")
    rows.sort(key=lambda row: tuple(map(str, row.values())))
    if as_json:
        name = "entries" if entries else "packs"
        print_json_rows({"remote": url.shown}, name, rows)
        return
    columns = _ENTRIES if entries else _PACKS
    human, now = is_terminal(), time.time()
    print_table(columns, [_cells(row, human, now) for row in rows], _total(rows, len(columns)))


def _total(rows: Sequence[dict[str, Any]], columns: int) -> tuple[str, ...]:
    """The last line: how many there are, and their sizes together."""
    known = [row["bytes"] for row in rows if row["bytes"] is not None]
    between = ("",) * (columns - 3)
    return (f"{len(rows)} in all", *between, size(sum(known)), "")


def _packs(opened: Remote) -> Iterator[dict[str, Any]]:
    from gpucache.remote.object_names import PACKS, pack_name

    for listed in opened.list(PACKS):
        name = pack_name(listed.name)
        if name is not None:
            yield {"name": name, **_about(listed)}


def _entries(opened: Remote) -> Iterator[dict[str, Any]]:
    from gpucache.remote.object_names import FORMAT, entry_name

    for listed in opened.list(f"{FORMAT}/"):
        entry = entry_name(listed.name)
        if entry is not None:
            named = {"key": entry.store_key, "triton_version": entry.triton_version}
            yield {**named, **_about(listed)}


def _about(listed: Listed) -> dict[str, Any]:
    return {"bytes": listed.size_bytes, "put": listed.modified_s}


def _cells(row: dict[str, Any], human: bool, now: float) -> tuple[str, ...]:
    """A row of the table: sizes and times as people read them, or as numbers where a program reads."""
    *named, count, put = row.values()
    if not human:
        return (*named, _number(count), _number(put))
    shown_size = "" if count is None else size(count)
    shown_time = "" if put is None else ago(now - put)
    return (*named, shown_size, shown_time)


def _number(value: float | None) -> str:
    return "" if value is None else str(int(value))


@remote.command()
@remote_option
@json_option
def check(remote: str | None, as_json: bool) -> int:
    """Try all that is needed of a remote, with one small object: put, put again, get, remove, list.

    A remote whose URL does not say mode=write is read only. Exits with 1 if anything failed.
    """
    from gpucache.remote.opening import open_remote
    from gpucache.remote.remote import FOR_A_CHECK

    url = named_remote(remote)
    report = open_remote(url, command_settings(), FOR_A_CHECK).check()
    if as_json:
        steps = [step._asdict() for step in report.steps]
        print_json({"remote": report.remote, "works": report.works, "steps": steps})
    else:
        print_table(_STEPS, [_step(step) for step in report.steps])
    if report.works and url.mode == "read":
        say("note: nothing was written; with mode=write in the URL that is tried too")
    for step in report.steps:
        if step.hint:
            say(f"hint: {step.hint}")
    return 0 if report.works else 1


def _step(step: CheckStep) -> tuple[str, ...]:
    return step.step, step.outcome, f"{1000 * step.seconds:.1f}", step.fact
