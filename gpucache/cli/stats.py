"""The command `gpucache stats`."""

from __future__ import annotations

import os
from contextlib import suppress

import click

from gpucache.cli import device_rows
from gpucache.cli.options import json_option, root_option
from gpucache.cli.terminal import print_json, print_table


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
    from gpucache.layout.paths import resolve_root
    from gpucache.store.stats import COUNTERS, SECONDS, fold, totals

    where = resolve_root(root, os.environ)
    vet(where, Trust.parse(os.environ))
    with suppress(OSError):  # read-only: they are summed without being folded
        fold(where)
    columns = COUNTERS + SECONDS
    zeros = dict.fromkeys(columns, 0)
    sums = {name: zeros | values for name, values in totals(where).items()}
    everything = {column: sum(values[column] for values in sums.values()) for column in columns}
    if as_json:
        print_json({"root": where, "devices": sums, "all": everything})
        return
    rows = []
    for name, values in [*sorted(sums.items()), ("all", everything)]:
        cells = device_rows.counter_cells(values, columns)
        rows.append((name, *cells))
    print_table(("directory", *columns), rows)
