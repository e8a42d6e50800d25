"""How `prune`, `rm` and `clean` show what they would remove and what they have: rows for JSON, cells for tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from gpucache.cli.cache_rows import Cells, Row, utc
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_data, say
from gpucache.units import ago, size

if TYPE_CHECKING:
    from gpucache.report.entries import Entry
    from gpucache.upkeep.execution import Outcome, Skipped
    from gpucache.upkeep.plan import Plan

COLUMNS = (
    Column("what", weight=40),
    Column("which", weight=20),
    Column("name"),
    Column("size", right=True),
    Column("used", weight=30, right=True),
)
_LARGEST = 10
"""Of a long plan so many of its parts are shown, and so many kernels."""
_LONG = 20
"""A plan of more parts is a long one."""
_DAY_S = 86400.0
_AGES = (
    ("under a day", _DAY_S),
    ("1 to 7 days", 7 * _DAY_S),
    ("7 to 30 days", 30 * _DAY_S),
    ("30 to 90 days", 90 * _DAY_S),
)
_OLDER = "over 90 days"


class Part(NamedTuple):
    """One thing that a plan removes, or makes smaller."""

    what: Literal["remove", "slim", "sweep"]
    which: str
    """An entry's key; of what is no entry, its kind, or the cache that has it."""
    name: str
    """The kernel's name; of what is no entry, its path, or the name of a unit."""
    freed_bytes: int
    used: float
    """Seconds since the epoch."""
    group: str
    """What the part is counted as in the sums of a long plan: the kernel, or a word for what is no entry."""


def parts(plan: Plan) -> Iterator[Part]:
    """All that a plan removes, in the order in which that is done for entries."""
    from gpucache.upkeep.slim import slimmed_bytes

    for entry in plan.removing:
        yield _entry("remove", entry, entry.physical_bytes)
    for entry in plan.slimming:
        yield _entry("slim", entry, slimmed_bytes(entry))
    for stray in plan.strays:
        yield Part("sweep", stray.kind, stray.path, stray.size_bytes, stray.modified, "(strays)")
    for file in plan.inductor_files:
        name = "(TorchInductor's files)"
        yield Part("remove", "inductor", file.path, file.size_bytes, file.used, name)
    for unit in plan.jit_units:
        name = f"({unit.cache})"
        yield Part("remove", unit.cache, unit.name, unit.physical_bytes, unit.used, name)
    for unit in plan.jit_left:
        name = f"({unit.cache})"
        yield Part("sweep", unit.cache, unit.path, unit.physical_bytes, unit.used, name)


def _entry(what: Literal["remove", "slim"], entry: Entry, freed_bytes: int) -> Part:
    return Part(what, entry.key, entry.kernel, freed_bytes, entry.used, entry.kernel)


# ---- for JSON


def plan_row(plan: Plan) -> Row:
    """What a plan would remove and what it keeps."""
    entries = (*plan.removing, *plan.slimming)
    return {
        "root": plan.root,
        "entries": len(plan.removing),
        "slimmed": len(plan.slimming),
        "strays": len(plan.strays),
        "files": len(plan.inductor_files),
        "units": len(plan.jit_units),
        "leftovers": len(plan.jit_left),
        "logical_bytes": plan.logical_bytes,
        "physical_bytes": plan.physical_bytes,
        "keys": [entry.key for entry in entries],
        "parts": list(map(_part_row, parts(plan))),
        "foreign": _foreign_rows(plan),
        "kept": _skipped_rows(plan.kept),
    }


def _part_row(part: Part) -> Row:
    return {
        "what": part.what,
        "which": part.which,
        "name": part.name,
        "physical_bytes": part.freed_bytes,
        "used": part.used,
    }


def _foreign_rows(plan: Plan) -> list[Row]:
    """The directories outside the root, with how many views of each go with their entries."""
    return [{"path": path, "views": views} for path, views in plan.foreign.items()]


def removal_row(done: Outcome) -> Row:
    """What the execution of a plan removed."""
    return {
        "entries": done.entries,
        "slimmed": done.slimmed,
        "strays": done.strays,
        "units": done.units,
        "files": done.freed.files,
        "logical_bytes": done.freed.logical_bytes,
        "physical_bytes": done.freed.physical_bytes,
        "skipped": _skipped_rows(done.skipped),
    }


def _skipped_rows(entries: Iterable[Skipped]) -> list[Row]:
    return [{"key": skipped.key, "why": skipped.why} for skipped in entries]


# ---- for people, and for the next program of a pipe


def print_plan(plan: Plan, each: bool) -> None:
    """Print what a plan removes: each part of it, or on a terminal, of a long plan, sums and the largest parts.

    Raises:
        OutputError: stdout cannot be written.
    """
    found = list(parts(plan))
    if not found:
        return
    if each or len(found) <= _LONG or not is_terminal():
        print_table(COLUMNS, part_cells(found, human=is_terminal()))
        return
    now = time.time()
    by_size = sorted(found, key=_bytes, reverse=True)
    _print_kernels(found, now)
    print_data("")
    _print_ages(found, now)
    print_data(f"\nthe {_LARGEST} largest:")
    print_table(COLUMNS, part_cells(by_size[:_LARGEST], human=True))
    say(f"note: and {len(found) - _LARGEST} more; --all lists each")


def part_cells(found: Iterable[Part], human: bool) -> list[Cells]:
    """The cells of `COLUMNS`: rounded for people, else whole keys, bytes, and times in UTC."""
    now = time.time()
    cells: list[Cells] = []
    for part in found:
        is_key = human and part.what != "sweep"
        which = part.which[:12] if is_key else part.which
        taken = size(part.freed_bytes) if human else str(part.freed_bytes)
        used = ago(now - part.used) if human else utc(part.used)
        cells.append((part.what, which, part.name, taken, used))
    return cells


def _print_kernels(found: Iterable[Part], now: float) -> None:
    """Print a row for each of the kernels that take most, and one for all others together."""
    groups: dict[str, list[Part]] = {}
    for part in found:
        groups.setdefault(part.group, []).append(part)
    by_size = sorted(groups.items(), key=lambda item: -_sum(item[1]))
    rows = [_sum_cells(name, several, now) for name, several in by_size[:_LARGEST]]
    others = [part for _, several in by_size[_LARGEST:] for part in several]
    if others:
        rows.append(_sum_cells(f"({len(by_size) - _LARGEST} others)", others, now))
    print_table(_sum_columns("kernel"), rows)


def _print_ages(found: Sequence[Part], now: float) -> None:
    """Print a row for each span of time for which parts were not used."""
    ages: dict[str, list[Part]] = {name: [] for name in (*dict(_AGES), _OLDER)}
    for part in found:
        ages[_age(now - part.used)].append(part)
    rows = [_sum_cells(name, several, now) for name, several in ages.items() if several]
    print_table(_sum_columns("unused for"), rows)


def _sum_columns(head: str) -> tuple[Column, ...]:
    return (
        Column(head),
        Column("count", right=True),
        Column("size", right=True),
        Column("last used", weight=30, right=True),
    )


def _sum_cells(name: str, several: Sequence[Part], now: float) -> Cells:
    last = max(part.used for part in several)
    return name, str(len(several)), size(_sum(several)), ago(now - last)


def _age(unused_s: float) -> str:
    for name, most_s in _AGES:
        if unused_s < most_s:
            return name
    return _OLDER


def _sum(several: Iterable[Part]) -> int:
    return sum(map(_bytes, several))


def _bytes(part: Part) -> int:
    return part.freed_bytes
