"""The options and the help of `gpucache path` and `env`, which click reads; what they do is in `path_and_env`."""

from __future__ import annotations

import click

from gpucache.cli.options import DEVICE, caches_option, json_option, root_option
from gpucache.cli.path_and_env import EnvCall, PathCall


@click.command()
@click.argument("device", type=DEVICE, metavar="DEVICE")
@root_option
@json_option
def path(device: int | str, root: str | None, as_json: bool) -> int:
    """Print the Triton cache directory of a device, from the record.

    DEVICE is a CUDA ordinal, a UUID, or what only one UUID begins with, as `gpucache devices` lists them.

    \b
    gpucache path 0
    gpucache path GPU-8a56a4bc
    CUDA_VISIBLE_DEVICES=3 TRITON_CACHE_DIR=$(gpucache path 3) python tune.py
    """
    return PathCall(device=device, root=root, as_json=as_json).execute()


@click.command()
@click.argument("device", type=DEVICE, metavar="DEVICE")
@root_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["sh", "fish", "json", "dotenv"]),
    help="How the variables are written.  [default: sh]",
)
@caches_option
@json_option
def env(
    device: int | str,
    root: str | None,
    form: str | None,
    caches: tuple[str, ...] | None,
    as_json: bool,
) -> int:
    """Print the variables that give a process this device's directory, from the record.

    DEVICE is a CUDA ordinal, a UUID, or what only one UUID begins with, as `gpucache devices` lists them.

    \b
    eval "$(gpucache env 0)"
    gpucache env 0 --format fish | source
    eval "$(gpucache env 0 --caches all)"
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other")
    form = "json" if as_json else form or "sh"
    return EnvCall(device=device, root=root, form=form, caches=caches).execute()
