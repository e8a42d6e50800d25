"""What `ls`, `prune` and `verify` do with ``--cache``: list, plan for and check the units of other JIT caches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpucache.cli.cache_rows import utc
from gpucache.cli.common import counted
from gpucache.cli.findings import print_findings
from gpucache.cli.tables import Choice, Column, print_table
from gpucache.cli.terminal import (
    is_terminal,
    print_json,
    print_json_rows,
    progress,
    say,
)
from gpucache.errors import ConfigurationError
from gpucache.escapes import printable
from gpucache.layout.jit_caches import ALL, JIT_CACHES, NONE, SET_ANYWAY, chosen
from gpucache.units import ago, size

if TYPE_CHECKING:
    from gpucache.layout.jit_cache import JitCache
    from gpucache.report.cache_report import CacheReport
    from gpucache.store.jit_units import JitUnit, JitUnits

UNIT_COLUMNS = (
    Column("cache"),
    Column("unit"),
    Column("files", weight=10, right=True),
    Column("size", weight=40, right=True),
    Column("used", weight=30, right=True),
    Column("owner", weight=20, right=True),
)
_ORDERS: dict[str, tuple[Callable[[JitUnit], Any], bool]] = {
    "used": (lambda unit: unit.used, True),
    "created": (lambda unit: unit.modified, True),
    "size": (lambda unit: unit.physical_bytes, True),
    "kernel": (lambda unit: (unit.cache, unit.name), False),
    "key": (lambda unit: (unit.cache, unit.name), False),
}
"""By what units are sorted, and whether the largest or newest comes first where nobody says otherwise."""
_INSTEAD = {
    "triton": "Triton's entries are what this command is about without --cache",
    "inductor": "TorchInductor's files are for `gpucache prune --inductor`, `clean` and `du`",
}
_WANTED = "all, or names that `gpucache caches` lists: warp,numba"


def cache_option(help_text: str) -> Callable[[Any], Any]:
    """Which JIT caches a command is about, instead of Triton's entries."""
    return click.option(
        "--cache", "caches", metavar="NAME[,NAME]", callback=_named, help=f"{help_text} (`all`)."
    )


def _named(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[JitCache, ...] | None:
    """The rows that the option's value names; None without the option.

    Raises:
        ConfigurationError: a name is no cache's, and then the error says the nearest right one; or there is no name.
    """
    if value is None:
        return None
    names = [name for name in map(str.strip, value.split(",")) if name]
    for name in names:
        if name in SET_ANYWAY:
            raise click.BadParameter(_INSTEAD[name])
    if not names or NONE in names:
        raise ConfigurationError("--cache", value, _WANTED)
    rows = chosen(names, "--cache")
    return JIT_CACHES if ALL in names else rows


def refuse(**given: object) -> None:
    """Refuse options beside ``--cache`` that only entries of Triton's have a sense for.

    Raises:
        click.UsageError: one was given.
    """
    for name, value in given.items():
        if value:
            option = name.upper() if name == "key" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is about Triton's entries: leave it or --cache out")


# ---- ls


class Chosen(NamedTuple):
    """Which units are listed, and in which order."""

    older_than_s: float | None
    larger_than_bytes: int | None
    order: str
    ascending: bool | None
    """None for the order's own direction."""
    limit: int | None

    def of(self, units: Iterable[JitUnit], now: float) -> list[JitUnit]:
        """The units that are chosen, all of them, in their order."""
        chosen = [unit for unit in units if self._has(unit, now)]
        key, is_descending = _ORDERS[self.order]
        if self.ascending is not None:
            is_descending = not self.ascending
        return sorted(chosen, key=key, reverse=is_descending)

    def _has(self, unit: JitUnit, now: float) -> bool:
        if self.older_than_s is not None and now - unit.used <= self.older_than_s:
            return False
        return self.larger_than_bytes is None or unit.physical_bytes > self.larger_than_bytes


def list_units(
    root: str, caches: tuple[JitCache, ...], chosen: Chosen, choice: Choice, as_json: bool
) -> None:
    """Print the chosen units of some JIT caches of a root, and say what could not be looked at."""
    from gpucache.store.jit_units import find

    root = os.path.realpath(root)
    found = find(root, caches)
    now = time.time()
    units = chosen.of((unit for one in found for unit in one.units), now)
    listed = units[: chosen.limit]
    if as_json:
        about = {"root": root, "caches": [_cache_row(one) for one in found]}
        print_json_rows(about, "units", [unit_row(unit) for unit in listed])
        return
    human = is_terminal()
    taken = size(sum(unit.physical_bytes for unit in listed))
    count = counted(len(listed), "unit", "units")
    if len(listed) < len(units):
        count = f"{len(listed)} of {len(units)}"
    total = ("all", count, "", taken, "", "")
    print_table(UNIT_COLUMNS, [_cells(unit, now, human) for unit in listed], total, choice=choice)
    _tell(root, caches, found)
    if not units and any(one.units for one in found):
        say("note: no unit there is like that")


def unit_row(unit: JitUnit) -> dict[str, Any]:
    """The fields of a unit for JSON."""
    return {
        "cache": unit.cache,
        "unit": unit.name,
        "path": unit.path,
        "files": unit.files,
        "logical_bytes": unit.logical_bytes,
        "physical_bytes": unit.physical_bytes,
        "created": unit.modified,
        "used": unit.used,
        "uid": unit.uid,
    }


def _cache_row(found: JitUnits) -> dict[str, Any]:
    """What is to be said of one directory of a cache, for JSON."""
    return {
        "cache": found.cache.name,
        "directory": found.directory,
        "units": len(found.units),
        "unfinished": len(found.staged) + len(found.aside),
        "unreadable": [{"path": path, "why": why} for path, why in found.unreadable],
        "complete": found.is_complete,
    }


def _cells(unit: JitUnit, now: float, human: bool) -> tuple[str, ...]:
    used = ago(now - unit.used) if human else utc(unit.used)
    taken = size(unit.physical_bytes) if human else str(unit.physical_bytes)
    name = printable(unit.name)
    return unit.cache, name, str(unit.files), taken, used, str(unit.uid)


def _tell(root: str, caches: tuple[JitCache, ...], found: list[JitUnits]) -> None:
    """Say what is not there, what could not be looked at, and what writers have not finished."""
    if not found:
        names = ", ".join(cache.name for cache in caches) if len(caches) < 6 else "these caches"
        say(f"note: nothing of {names} is in {root}/jit")
    for one in found:
        for path, why in one.unreadable:
            say(f"warning: {path}: {why}")
        if not one.is_complete:
            say(f"warning: {one.directory}: only the first of its very many names were looked at")
        left = len(one.staged) + len(one.aside)
        if left:
            what = counted(left, "leftover", "leftovers")
            say(f"note: {what} of unfinished writes in {one.directory}; `prune` takes old ones")
        if not one.cache.units:
            say(f"note: {one.directory}: nothing in it may be removed alone; `du` counts it")


# ---- prune


def empty_report(root: str) -> CacheReport:
    """What stands for the report of a root whose entries a command is not about."""
    from gpucache.report.cache_report import CacheReport

    root = os.path.realpath(root)
    return CacheReport(root=root, devices=(), entries=(), strays=(), usage=(), findings=())


# ---- verify


def verify_units(
    root: str, caches: tuple[JitCache, ...], repair: bool, as_json: bool, each: bool
) -> int:
    """Check the units of some JIT caches, and print what is wrong. The exit code is 1 where something stays wrong."""
    from gpucache.upkeep.jit_verify import UNIT_CODES
    from gpucache.upkeep.jit_verify import verify_units as check

    with progress("verifying") as show:
        done = check(root, caches, repair, show)
    if as_json:
        print_json(done.as_json())
    else:
        findings = [checked.finding for checked in done.findings]
        notes = [checked.note for checked in done.findings]
        print_findings(findings, notes, codes=UNIT_CODES, each=each)
        units = counted(done.units, "unit", "units")
        wrong = counted(len(findings), "finding", "findings")
        say(f"note: {units} checked in {done.root}/jit, {wrong}")
        _tell_unjudged(caches)
    return 1 if done.unrepaired else 0


def _tell_unjudged(caches: tuple[JitCache, ...]) -> None:
    """Say of which caches nothing is judged, where not all were asked for."""
    from gpucache.report.jit_damage import JUDGED

    if caches == JIT_CACHES:
        return
    for cache in caches:
        if cache.name not in JUDGED:
            makes_again = cache.mends_itself is True
            why = "makes a damaged file again" if makes_again else "alone can judge its files"
            say(f"note: {cache.name} is not judged: {cache.software} {why}")
