"""The command `gpucache stats`, which sums the plug-in's counters."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

import click

from gpucache import environment
from gpucache.cli import device_rows
from gpucache.cli.common import (
    check_cached,
    command_settings,
    counted,
    existing,
    fold_counters,
    vetted,
)
from gpucache.cli.options import TIME, json_option, root_option
from gpucache.cli.settings import undoing
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, say
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpucache.store.counts import Sums
    from gpucache.store.levels import Level, LevelName
    from gpucache.store.pulled import PulledUse

    Values = Mapping[str, float]


@click.command()
@click.option(
    "--since",
    type=TIME,
    metavar="TIME",
    help="Only what was counted in this time, to the hour, such as 2h or 7d; 14 days are kept.",
)
@click.option("--host", metavar="NAME", help="Only what this host has counted.")
@click.option(
    "--reset",
    is_flag=True,
    help="Count from now on: puts a mark, and takes away nothing that was counted.",
)
@click.option("--ever", is_flag=True, help="All that was ever counted, whatever mark there is.")
@root_option
@json_option
def stats(
    since: float | None,
    host: str | None,
    reset: bool,
    ever: bool,
    root: str | None,
    as_json: bool,
) -> None:
    """Show hits, misses and seconds saved, per device directory and in all, and what a fallback or a remote gave.

    Without --since, all is shown that was counted since --reset was said last, by whomever.

    \b
    gpucache stats
    gpucache stats --since 2h
    gpucache stats --reset
    gpucache stats --json
    """
    if (since is not None) + reset + ever > 1:
        raise click.UsageError("--since, --reset and --ever exclude each other")
    where = _looked_at(root, reset)
    if reset:
        _reset(where, host, as_json)
        return
    window = _window(where, since, ever)
    sums = _of_host(where, window.sums, host)
    _print(where, _by_directory(sums), window, host, as_json)


def _looked_at(root: str | None, writes: bool) -> str:
    """The root, vetted, with the counters of ended processes folded; notes say what is not counted or not seen."""
    from gpucache.disk.refusal import may
    from gpucache.disk.vetting import Trust, vet
    from gpucache.layout import paths

    where = vetted(root) if writes else existing(root)
    vet(where, Trust.parse(command_settings()).in_root(where))
    fold_counters(where)
    if os.path.isdir(paths.ours(where, "stats")) and not may(paths.ours(where, "stats"), os.R_OK):
        say(f"note: the counters of {where} are for its owner alone")
    for off in environment.turned_off(command_settings()):
        way_out = undoing(off.name, root)
        say(f"note: {off.name}={off.value}: {off.consequence}; {way_out} to share")
    return where


def _reset(where: str, host: str | None, as_json: bool) -> None:
    """Put the mark, and say so."""
    from gpucache.store.mark import set_mark
    from gpucache.store.stats import sums_of

    if host is not None:
        raise click.UsageError("--reset is for all hosts of a root, and takes no --host")
    mark = set_mark(where, sums_of(where))
    if as_json:
        print_json({"root": where, "reset": mark.at})
    else:
        say("note: from now on `gpucache stats` counts anew; --ever shows all")


_HOURLY = "to the hour"
_KEPT = "to the hour: of what came before, no hours are kept"
_RESET = "when --reset was said"


class _Window(NamedTuple):
    """The time of which counters are shown."""

    sums: Sums
    began: float | None
    """In seconds since the epoch; None is ever."""
    why: str
    """Why that moment, for a person."""


def _window(where: str, since: float | None, ever: bool) -> _Window:
    """What was counted in the time that is asked for, by host, device directory and hour."""
    from gpucache.store.counts import HOUR_S, HOURS_KEPT, this_hour
    from gpucache.store.mark import mark_of, since_mark
    from gpucache.store.stats import hours, sums_of

    if since is not None:
        kept_since = (this_hour() - HOURS_KEPT + 1) * HOUR_S
        asked = (time.time() - since) // HOUR_S * HOUR_S
        began = max(asked, kept_since)
        return _Window(hours(where, began), began, _KEPT if asked < kept_since else _HOURLY)
    mark = None if ever else mark_of(where)
    if mark is None:
        return _Window(sums_of(where), None, "")
    return _Window(since_mark(sums_of(where), mark), mark.at, _RESET)


def _of_host(where: str, sums: Sums, host: str | None) -> Sums:
    """The sums of one host, or of all.

    Raises:
        NotCachedError: that host has counted nothing, and others have.
    """
    from gpucache.store.stats import sums_of

    if host is None:
        return sums
    check_cached(where, "--host", host, [one.host for one in sums_of(where) if one.host])
    return {one: values for one, values in sums.items() if one.host == host}


def _by_directory(sums: Sums) -> dict[str, Values]:
    """The counters of each device directory, those that nobody has counted as well."""
    from gpucache.store.counts import COUNTERS, SECONDS, add_up

    zeros = dict.fromkeys(COUNTERS + SECONDS, 0)
    return {name: zeros | values for name, values in add_up(sums).items()}


def _print(
    where: str, sums: dict[str, Values], window: _Window, host: str | None, as_json: bool
) -> None:
    from gpucache.store.counts import COUNTERS, FALLBACK_COUNTERS, REMOTE_COUNTERS, SECONDS
    from gpucache.store.levels import hit_rate, levels
    from gpucache.store.pulled import use_of_pulled
    from gpucache.store.stats import REMOTE

    everything = {}
    for column in COUNTERS + SECONDS:
        everything[column] = sum(values[column] for values in sums.values())
    sums.pop(REMOTE, None)  # nothing was launched there
    by_level = levels(everything)
    pulled = use_of_pulled(where)
    if as_json:
        shown = {name: level._asdict() for name, level in by_level.items()}
        devices = {name: {**row, "hit_rate": hit_rate(row)} for name, row in sums.items()}
        whole = {**everything, "hit_rate": hit_rate(everything)}
        said = {"root": where, "since": window.began, "host": host, "devices": devices}
        print_json({**said, "all": whole, "levels": shown, "pulled": pulled._asdict()})
        return
    _print_directories(sums, everything)
    of_others = FALLBACK_COUNTERS + REMOTE_COUNTERS
    if pulled.entries or any(everything[name] for name in of_others):
        _print_levels(by_level)
        _tell_of_moves(everything, pulled)
    _tell_window(window, bool(pulled.entries) or any(everything.values()))


def _tell_window(window: _Window, has_counted: bool) -> None:
    """Say of which time the counters are, where that is not ever; and what to do where nothing was counted."""
    if window.began is not None:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(window.began))
        say(f"note: counted since {began}, {window.why}")
    elif not has_counted:
        say("note: nothing was counted yet: start a program by `gpucache run -- python train.py`")


def _print_directories(sums: Mapping[str, Values], everything: Values) -> None:
    """A line for each device directory, and one for all."""
    from gpucache.store.counts import NODE_COUNTERS, NODE_SECONDS

    counters = NODE_COUNTERS + NODE_SECONDS
    lines = [_cells(name, sums[name], counters) for name in sorted(sums)]
    lines.append(_cells("all", everything, counters))
    columns = _numbered("directory", ("hit_rate", *counters))
    print_table(columns, lines, piped=("directory", *counters, "hit_rate"))


def _cells(name: str, values: Values, counters: Sequence[str]) -> tuple[str, ...]:
    """The cells of a row: the share of launches that found their kernel, and the counters."""
    from gpucache.store.levels import hit_rate

    rate = hit_rate(values)
    shown = f"{100 * rate:.1f}%" if is_terminal() and rate is not None else _or_dash(rate)
    return (name, shown, *device_rows.counter_cells(values, counters))


def _or_dash(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4f}"


_FIRST = ("hit_rate", "hits", "shared_hits", "misses", "saved_s", "errors_degraded", "compiled_s")
"""What a narrow terminal shows rather than other counters."""


def _numbered(first: str, names: Sequence[str]) -> list[Column]:
    """A column of names, and columns of numbers, of which the last ones are left out first."""
    order = list(dict.fromkeys((*_FIRST, *names)))
    numbers = [Column(name, weight=len(order) - order.index(name), right=True) for name in names]
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
