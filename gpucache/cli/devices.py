"""The commands that look for this machine's devices: `devices` lists them, `provision` makes their directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpucache import environment
from gpucache.cli import device_rows
from gpucache.cli.next_steps import after_provision
from gpucache.cli.options import json_option, name_of, root_option
from gpucache.cli.settings import settings_of, undoing
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import log_to_stderr, print_json, say

if TYPE_CHECKING:
    from gpucache.cli.resharing import Change
    from gpucache.cli.terminal import LogLevel
    from gpucache.directories.provision import Provision
    from gpucache.directories.registry import DeviceCacheRegistry
    from gpucache.disk.sharing import Sharing

_DEVICES = (
    Column("ordinal", right=True),
    Column("directory"),
    Column("name", weight=30),
    Column("capability", weight=20, right=True),
    Column("memory", weight=10, right=True),
    Column("uuid", weight=40),
)
"""As `device_rows.device_cells` has their cells."""
_PROVISIONED = (Column("path"), Column("state"), Column("uuid", weight=10))

_require_gpu = click.option(
    "--require-gpu", is_flag=True, help="Fail instead of making up a device."
)


@click.command()
@root_option
@json_option
@_require_gpu
def devices(root: str | None, as_json: bool, require_gpu: bool) -> None:
    """List this machine's devices and their directories; makes nothing.

    \b
    gpucache devices
    gpucache devices --json --require-gpu
    """
    registry = _discovered(root, require_gpu)
    rows = device_rows.device_rows(registry)
    visible = registry.visible
    if as_json:
        about = {
            "root": registry.root,
            **registry.snapshot.as_json(),
            "how": visible.how,
            "cut": visible.cut,
        }
        print_json({**about, "devices": rows})
        return
    lines = [device_rows.device_cells(row) for row in rows]
    print_table(_DEVICES, lines)
    if visible.cut:
        say(f"note: {visible.cut}")
    if visible.how == "guess":
        from gpucache.machine.visible import guess_advice

        fact, fix = guess_advice(registry.snapshot)
        say(f"note: {fact}: {fix}")


@click.command()
@root_option
@json_option
@_require_gpu
@click.option(
    "--shared",
    type=click.Choice(["private", "read", "group"]),
    help="Who may use the root: its owner (private), others to read, or its group.",
)
@click.option(
    "--group",
    metavar="NAME",
    callback=name_of,
    help="The group, for --shared group (default: that of the root's directory).",
)
@click.option(
    "--yes", "-y", is_flag=True, help="Do not ask before a root is shared with others than now."
)
@click.option("--dry-run", "-n", is_flag=True, help="Only show what --shared would change.")
def provision(
    root: str | None,
    as_json: bool,
    require_gpu: bool,
    shared: Sharing | None,
    group: str | None,
    yes: bool,
    dry_run: bool,
) -> int:
    """Make a cache directory for every device of this machine.

    Any number of processes may do this at once; what is there is left alone. --shared changes the modes of what is
    there, after a question, and mends those of a root that is shared so already.

    \b
    gpucache provision
    gpucache provision --root /scratch/kernels --json
    gpucache provision --root /scratch/kernels --shared group --group ml
    gpucache provision --shared private --dry-run
    """
    if dry_run and shared is None:
        raise click.UsageError("--dry-run shows what --shared would change: say --shared as well")
    if group is not None and shared != "group":
        raise click.UsageError(
            "--group goes with --shared group: say that as well, or leave --group out"
        )
    registry = _discovered(root, require_gpu, log="ERROR")  # the warnings are said below
    change = None
    if shared is not None:
        from gpucache.cli.resharing import Call, reshared

        call = Call(sharing=shared, group=group, dry_run=dry_run, yes=yes)
        change = reshared(registry.root, call, settings_of(root), quiet=as_json)
        if change is not None and not (change.is_whole and change.is_own):
            if as_json:
                print_json({"root": registry.root, "resharing": change.row()})
            return 0 if dry_run or change.is_whole else 1
        if dry_run:
            say(f"note: {registry.root} is empty, or not there: nothing would change")
            return 0
    done = registry.provision(sharing=shared)
    _tell(registry, done, change, as_json)
    if environment.DISABLE.read(settings_of(root)):
        say(f"hint: to have directories made, {undoing(environment.DISABLE.name, root)}")
    is_news = shared is not None and (change is None or change.planned.changes_mark)
    if done.sharing == "group" and is_news and not as_json:
        from gpucache.cli.resharing import tell_members

        tell_members(registry.root)
    if not as_json:
        after_provision(root, len(registry), registry.snapshot.made_up)
    return 0


def _tell(
    registry: DeviceCacheRegistry, done: Provision, change: Change | None, as_json: bool
) -> None:
    """Say what was provisioned."""
    for warning in done.warnings:
        if warning not in done.of_node or _is_news(done, warning):
            say(f"warning: {warning}")
    rows = device_rows.device_rows(registry)
    if as_json:
        snapshot = registry.snapshot.as_json()
        told = ("status", "source", "fake", "detail", "advice")
        about = {key: snapshot[key] for key in told}
        print_json(
            {
                "root": done.root,
                "sharing": done.sharing,
                "resharing": None if change is None else change.row(),
                **about,
                "created": list(done.created),
                "existing": list(done.existing),
                "warnings": list(done.warnings),
                "devices": rows,
            }
        )
        return
    lines = []
    for row in rows:
        state = _state(done, row["directory"])
        lines.append((row["path"], state, row["uuid"]))
    print_table(_PROVISIONED, lines)


def _is_news(done: Provision, warning: str) -> bool:
    """Whether what holds of the node is told: the first time in a day, and where directories were made."""
    from gpucache.once import first_on_node

    return first_on_node(f"{done.root}: {warning}") or bool(done.created)


def _state(done: Provision, directory: str) -> str:
    """What became of a device's directory."""
    if directory in done.created:
        return "created"
    if directory in done.existing:
        return "existing"
    return "not made"


def _discovered(
    root: str | None, require_gpu: bool, log: LogLevel = "WARNING"
) -> DeviceCacheRegistry:
    """The devices that NVML finds now, and their directories. The log goes to stderr from the level ``log`` on."""
    from gpucache.directories.registry import DeviceCacheRegistry
    from gpucache.machine.nvml import discover

    log_to_stderr(log)
    environ = settings_of(root)
    return DeviceCacheRegistry(root, discover(environ, require_gpu=require_gpu), environ)
