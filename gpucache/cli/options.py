"""The options that several commands have."""

from __future__ import annotations

import click

# Not readable: whether a directory may be used is for vetting to say, with its reasons.
root_option = click.option(
    "--root",
    type=click.Path(readable=False),
    help="Cache root, instead of $GPUCACHE_DIR and torch's default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
codes_option = click.option(
    "--codes", is_flag=True, help="Only list every code of a finding, and what it means."
)
