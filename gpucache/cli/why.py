"""The command `gpucache why`: why a kernel was compiled again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.cache_rows import utc
from gpucache.cli.common import check_kernel, counted, existing, scanned
from gpucache.cli.options import json_option, root_option
from gpucache.cli.tables import Choice, Column, print_table, table_options
from gpucache.cli.terminal import is_terminal, print_json, progress, say
from gpucache.errors import GpuCacheError, NoEntryError
from gpucache.units import ago

if TYPE_CHECKING:
    from gpucache.diagnosis.why_compiled import Compiled
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry

_USUAL_LIMIT = 20
COLUMNS = (
    Column("compiled", 30),
    Column("key"),
    Column("kernel", 10),
    Column("arch", 5),
    Column("nearest earlier", 20),
    Column("what differs", whole=False),
)
DETAILS = (
    Column("what", 10),
    Column("name"),
    Column("earlier", whole=False),
    Column("this", whole=False),
)
_FIRST = "the first of this kernel that is still there"
_SAME = "nothing that the files tell: Triton's own build, ptxas, or a comment"


@click.command()
@click.argument("name_or_key", metavar="NAME|KEY")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=_USUAL_LIMIT,
    show_default=True,
    metavar="N",
    help="Only the newest N compiles of NAME.",
)
@table_options(COLUMNS)
@root_option
@json_option
def why(
    name_or_key: str,
    limit: int,
    wide: bool,
    columns: tuple[str, ...] | None,
    root: str | None,
    as_json: bool,
) -> None:
    """Tell why a kernel was compiled, though others of its name were there: the nearest earlier, and what differs.

    Of a NAME (or a pattern in quotes) each compile is told, the newest first; of a KEY that one. Compared are
    constants, types and options by name, Triton's version, the variables in the key, the function's line and source;
    with the 64 entries that were compiled just before, as far as they are still there. `GPUCACHE_LOG=info` tells the
    same at each miss.

    \b
    gpucache why matmul
    gpucache why '*attn*' --limit 5
    gpucache why JRCHT7QYPGJA
    """
    from gpucache.diagnosis.why_compiled import why_compiled

    report = scanned(existing(root))
    asked = _asked(report, name_or_key)
    with progress("comparing") as show:
        told = why_compiled(asked[:limit], report.entries, show)
    if as_json:
        print_json({"root": report.root, "compiles": list(map(_row, told))})
    elif len(told) == 1 and told[0].entry.key.startswith(name_or_key):
        _print_one(told[0])
    else:
        _print_all(told, len(asked) - len(told), Choice(wide, columns))


def _asked(report: CacheReport, name: str) -> list[Entry]:
    """The kernels that are meant, the newest first.

    Raises:
        NotCachedError: neither a kernel nor a key is like that; the error lists what there is.
        NoEntryError: several keys begin so.
    """
    from gpucache.diagnosis.why_compiled import kernels_named

    named = kernels_named(report.entries, name)
    if named:
        return named
    with_key = [entry for entry in report.entries if entry.key.startswith(name) and name]
    kernels = [entry for entry in with_key if entry.kind == "kernel"]
    if len(kernels) == 1:
        return kernels
    if len(with_key) > 1:
        raise NoEntryError(report.root, name, tuple(entry.key for entry in with_key))
    if with_key:
        (other,) = with_key
        hint = f"`gpucache ls {other.key[:12]}` shows what it is"
        raise GpuCacheError(
            f"{other.kernel} {other.key} is no kernel, but of kind {other.kind}", hint
        )
    check_kernel(report, "NAME", name)
    raise NoEntryError(report.root, name, (), is_empty=not report.entries)


def _row(compiled: Compiled) -> dict[str, Any]:
    """One compile for JSON."""
    entry, earlier = compiled.entry, compiled.earlier
    return {
        "key": entry.key,
        "kernel": entry.kernel,
        "arch": entry.arch,
        "triton_version": entry.triton_version,
        "created": entry.created,
        "nearest": None if earlier is None else earlier.key,
        "differences": [each._asdict() for each in compiled.differences],
    }


# ---- a list


def _print_all(told: Sequence[Compiled], more: int, choice: Choice) -> None:
    now = time.time()
    human = is_terminal()
    rows = [_cells(compiled, now, human) for compiled in told]
    columns: Sequence[Column] = COLUMNS
    is_one = len({compiled.entry.kernel for compiled in told}) == 1
    if human and is_one and choice == Choice():
        columns = tuple(column for column in COLUMNS if column.name != "kernel")
        rows = [(*cells[:2], *cells[3:]) for cells in rows]
    print_table(columns, rows, choice=choice)
    if more:
        say(f"note: and {counted(more, 'earlier compile', 'earlier compiles')}; --limit shows more")


def _cells(compiled: Compiled, now: float, human: bool) -> tuple[str, ...]:
    entry, earlier = compiled.entry, compiled.earlier
    near = "-" if earlier is None else _key(earlier, human)
    when = ago(now - entry.created) if human else utc(entry.created)
    return when, _key(entry, human), entry.kernel, entry.arch or "-", near, summary(compiled)


def _key(entry: Entry, human: bool) -> str:
    return entry.key[:12] if human else entry.key


def summary(compiled: Compiled) -> str:
    """What differs from the nearest earlier entry, on one line."""
    from gpucache.kernels.differences import words

    if compiled.earlier is None:
        return _FIRST
    return ", ".join(map(words, compiled.differences)) or _SAME


# ---- one


def _print_one(compiled: Compiled) -> None:
    """Print the differences of one entry from the nearest earlier: a line each."""
    entry, earlier = compiled.entry, compiled.earlier
    now = time.time()
    about = f"{entry.kernel} {entry.key[:12]} ({entry.arch or '-'}), compiled {ago(now - entry.created)}"
    if earlier is None:
        say(f"note: {about}: {_FIRST}")
        return
    near = f"{earlier.key[:12]}, compiled {ago(now - earlier.created)}"
    say(f"note: {about}; the nearest earlier is {near}")
    rows = [
        (each.kind, each.name, each.a or "unset", each.b or "unset")
        for each in compiled.differences
    ]
    print_table(DETAILS, rows)
    if not rows:
        say(f"note: what differs is {_SAME}")
    say(f"note: `gpucache compare {earlier.key[:12]} {entry.key[:12]}` shows both side by side")
