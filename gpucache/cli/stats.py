"""The command `gpucache stats`, which sums the plug-in's counters."""

from __future__ import annotations

import os

import click

from gpucache import environment
from gpucache.cli import device_rows
from gpucache.cli.common import command_settings, counted, existing, fold_counters
from gpucache.cli.options import json_option, root_option
from gpucache.cli.settings import undoing
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import print_json, say
from gpucache.units import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.store.levels import Level, LevelName
    from gpucache.store.pulled import PulledUse

    Values = Mapping[str, float]


@click.command()
@root_option
@json_option
def stats(root: str | None, as_json: bool) -> None:
    """Show hits, misses and seconds saved, per device directory and in all, and what a fallback or a remote gave.

    \b
    gpucache stats
    gpucache stats --json
    """
    from gpucache.disk.refusal import may
    from gpucache.disk.vetting import Trust, vet
    from gpucache.layout import paths
    from gpucache.store.counts import COUNTERS, FALLBACK_COUNTERS, REMOTE_COUNTERS, SECONDS
    from gpucache.store.levels import levels
    from gpucache.store.pulled import use_of_pulled
    from gpucache.store.stats import REMOTE, totals

    where = existing(root)
    vet(where, Trust.parse(command_settings()).in_root(where))
    fold_counters(where)
    if os.path.isdir(paths.ours(where, "stats")) and not may(paths.ours(where, "stats"), os.R_OK):
        say(f"note: the counters of {where} are for its owner alone")
    for off in environment.turned_off(command_settings()):
        way_out = undoing(off.name, root)
        say(f"note: {off.name}={off.value}: {off.consequence}; {way_out} to share")
    columns = COUNTERS + SECONDS
    zeros = dict.fromkeys(columns, 0)
    sums = {}
    for name, values in totals(where).items():
        sums[name] = zeros | values
    everything = {}
    for column in columns:
        everything[column] = sum(values[column] for values in sums.values())
    sums.pop(REMOTE, None)  # nothing was launched there
    by_level = levels(everything)
    pulled = use_of_pulled(where)
    if as_json:
        shown = {name: level._asdict() for name, level in by_level.items()}
        said = {"root": where, "devices": sums, "all": everything, "levels": shown}
        print_json({**said, "pulled": pulled._asdict()})
        return
    _print_directories(sums, everything)
    of_others = FALLBACK_COUNTERS + REMOTE_COUNTERS
    if pulled.entries or any(everything[name] for name in of_others):
        _print_levels(by_level)
        _tell_of_moves(everything, pulled)


def _print_directories(sums: Mapping[str, Values], everything: Values) -> None:
    """A line for each device directory, and one for all."""
    from gpucache.store.counts import NODE_COUNTERS, NODE_SECONDS

    columns = NODE_COUNTERS + NODE_SECONDS
    lines = []
    for name in sorted(sums):
        cells = device_rows.counter_cells(sums[name], columns)
        lines.append((name, *cells))
    cells = device_rows.counter_cells(everything, columns)
    lines.append(("all", *cells))
    print_table(_numbered("directory", columns), lines)


def _numbered(first: str, names: Sequence[str]) -> list[Column]:
    """A column of names, and columns of numbers, of which the last ones are left out first."""
    numbers = []
    for place, name in enumerate(names):
        numbers.append(Column(name, weight=len(names) - place, right=True))
    return [Column(first), *numbers]


def _print_levels(by_level: Mapping[LevelName, Level]) -> None:
    """A line for each level: what it was asked and gave."""
    lines = []
    for name, level in by_level.items():
        lines.append((name, *map(_level_cell, level._fields, level)))
    columns = next(iter(by_level.values()))._fields
    print_table(_numbered("level", columns), lines)


def _level_cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if column == "seconds" else f"{value:.0f}"


def _tell_of_moves(everything: Values, pulled: PulledUse) -> None:
    """Say what was pulled, how much of that was of use, and what was pushed."""
    if pulled.entries:
        gone = f"; {pulled.gone} more are removed by now" if pulled.gone else ""
        say(f"pulled {pulled.entries}, used {pulled.used} of them since{gone}")
    if everything["pushed"] or everything["push_errors"]:
        sent = size(round(everything["pushed_bytes"]))
        failed = round(everything["push_errors"])
        say(
            f"pushed {everything['pushed']:.0f} ({sent}), failed {counted(failed, 'time', 'times')}"
        )
    if everything["remote_bad"]:
        bad = f"{everything['remote_bad']:.0f} times the remote gave what no trusted key has signed"
        say(f"note: {bad}, or other bytes; `gpucache doctor` tells more")
