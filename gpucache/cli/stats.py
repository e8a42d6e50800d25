"""The command `gpucache stats`, which sums the plug-in's counters."""

from __future__ import annotations

import os

import click

from gpucache import environment
from gpucache.cli import device_rows
from gpucache.cli.common import existing, fold_counters
from gpucache.cli.options import json_option, root_option
from gpucache.cli.terminal import print_json, print_table, say


@click.command()
@root_option
@json_option
def stats(root: str | None, as_json: bool) -> None:
    """Show hits, misses and seconds saved, per device directory and in all.

    \b
    gpucache stats
    gpucache stats --json
    """
    from gpucache.disk.vetting import Trust, vet
    from gpucache.store.counts import COUNTERS, SECONDS
    from gpucache.store.stats import totals

    where = existing(root)
    vet(where, Trust.parse(os.environ))
    fold_counters(where)
    for off in environment.turned_off(os.environ):
        say(f"note: {off.name}={off.value}: {off.consequence}; unset {off.name} to share")
    columns = COUNTERS + SECONDS
    zeros = dict.fromkeys(columns, 0)
    sums = {}
    for name, values in totals(where).items():
        sums[name] = zeros | values
    everything = {}
    for column in columns:
        everything[column] = sum(values[column] for values in sums.values())
    if as_json:
        print_json({"root": where, "devices": sums, "all": everything})
        return
    lines = []
    for name in sorted(sums):
        cells = device_rows.counter_cells(sums[name], columns)
        lines.append((name, *cells))
    cells = device_rows.counter_cells(everything, columns)
    lines.append(("all", *cells))
    print_table(("directory", *columns), lines)
