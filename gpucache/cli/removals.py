"""The commands that remove what is cached: `prune`, `clean`. Both make a plan, show it, ask, and execute it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli import cache_rows
from gpucache.cli.common import (
    archs_in,
    check_cached,
    command_settings,
    counted,
    scanned,
    tell,
    tell_findings,
    vetted,
)
from gpucache.cli.options import (
    SIZE,
    TIME,
    arch_option,
    is_arch,
    json_option,
    root_option,
    roots_option,
)
from gpucache.cli.tables import print_table
from gpucache.cli.terminal import (
    check_answerable,
    confirmed,
    is_terminal,
    print_json,
    progress,
    say,
)
from gpucache.cli.unit_rows import cache_option, empty_report, refuse
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.layout.jit_cache import JitCache
    from gpucache.report.cache_report import CacheReport
    from gpucache.upkeep.execution import Outcome
    from gpucache.upkeep.jit_prune import UnitPolicy
    from gpucache.upkeep.plan import Plan

_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
_dry_run = click.option("--dry-run", "-n", is_flag=True, help="Only show what would go.")


@click.command()
@click.option(
    "--max-size",
    type=SIZE,
    metavar="SIZE",
    help="Keep the entries' physical bytes below this (20GiB).",
)
@click.option(
    "--max-age",
    "--older-than",
    "max_age",
    type=TIME,
    metavar="TIME",
    help="Remove what was not used for so long (30d).",
)
@click.option(
    "--max-entries", type=click.IntRange(min=0), metavar="N", help="Keep so many entries."
)
@arch_option
@click.option(
    "--triton-version",
    metavar="SPEC",
    help="Only entries of these versions of Triton: '<3.6', 3.9.0.",
)
@click.option(
    "--keep-binaries",
    is_flag=True,
    help="Make entries smaller instead: without .ttir, .ttgir, .llir, .ptx, .source.",
)
@click.option(
    "--inductor",
    is_flag=True,
    help="Count and remove TorchInductor's files too, for --max-size and --max-age (default: they stay).",
)
@cache_option("Instead of entries, whole units of these other JIT caches")
@click.option(
    "--grace",
    type=TIME,
    metavar="TIME",
    help="Never touch what was used in this time (default 15min).",
)
@click.option(
    "--time-limit",
    type=TIME,
    default="10min",
    metavar="TIME",
    help="How long each of several roots may take (default 10min).",
)
@_dry_run
@_yes
@roots_option
@json_option
def prune(
    max_size: int | None,
    max_age: float | None,
    max_entries: int | None,
    arch: str | None,
    triton_version: str | None,
    keep_binaries: bool,
    inductor: bool,
    caches: tuple[JitCache, ...] | None,
    grace: float | None,
    time_limit: float,
    dry_run: bool,
    yes: bool,
    roots: tuple[str, ...],
    as_json: bool,
) -> int:
    """Remove entries that are old, over a limit or of no more use, and what killed processes left.

    --arch and --triton-version choose what may go, the limits say how much of it, least recently used first; without a
    limit all that was chosen goes; with neither, only strays. An entry goes whole, from the store and all device
    directories, and never while it is in use. With --cache entries stay, and whole units of other JIT caches go, never
    while their software makes them.

    Several --root, or what a pattern in quotes stands for, are pruned each in a process of its own. Under sudo that
    process first gives root's rights up for those of the root's owner.

    \b
    gpucache prune --max-size 20GiB --max-age 30d --yes
    gpucache prune --max-size 30GiB --inductor --yes
    gpucache prune --triton-version '<3.6' --dry-run
    gpucache prune --keep-binaries --max-age 7d --yes
    gpucache prune --cache flashinfer,warp --max-size 10GiB --yes
    sudo gpucache prune --root '/scratch/*/kernels' --max-age 30d --yes
    """
    from gpucache.cli.prune_roots import are_many, prune_many
    from gpucache.upkeep.jit_prune import UnitPolicy
    from gpucache.upkeep.many_roots import Order
    from gpucache.upkeep.plan import plan
    from gpucache.upkeep.prune import PrunePolicy

    if caches is not None:
        refuse(
            max_entries=max_entries,
            arch=arch,
            triton_version=triton_version,
            keep_binaries=keep_binaries,
            inductor=inductor,
        )
    policy = PrunePolicy(
        max_size_bytes=max_size,
        max_age_s=max_age,
        max_entries=max_entries,
        arch=arch,
        triton_version=triton_version,
        keep_binaries=keep_binaries,
        inductor=inductor,
    )
    units = None
    if caches is not None:
        units = UnitPolicy(caches=caches, max_size_bytes=max_size, max_age_s=max_age)
    if are_many(roots):
        order = Order(policy=units or policy, grace_s=grace, dry_run=dry_run, limit_s=time_limit)
        return prune_many(roots, order, yes, as_json)
    if not (dry_run or yes):
        check_answerable()
    where = vetted(roots[0] if roots else None)
    grace_s = _default_grace_s(where) if grace is None else grace
    if units is not None:
        return _prune_units(where, replace(units, grace_s=grace_s), dry_run, yes, as_json)
    policy = replace(policy, grace_s=grace_s)
    report = scanned(where)
    if arch is not None and not is_arch(arch):
        check_cached(report, "--arch", arch, archs_in(report))
    made = plan(report, policy, command_settings())
    is_bounded = max_size is not None or max_age is not None
    if is_bounded and not inductor and not as_json:
        _tell_of_inductor(report)
    return _carry_out(report, made, dry_run, yes, as_json)


def _prune_units(root: str, policy: UnitPolicy, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove units of other JIT caches, as `prune` does with ``--cache``."""
    with progress("looking"):
        made = policy.planned(root)
    return _carry_out(empty_report(root), made, dry_run, yes, as_json)


def _tell_of_inductor(report: CacheReport) -> None:
    """Say how much of TorchInductor's stays unasked."""
    from gpucache.layout.inductor import levels

    taken = sum(part.physical_bytes for part in report.usage if levels(part.name))
    if taken:
        say(f"note: TorchInductor's files ({size(taken)}) neither count nor go without --inductor")


@click.command()
@click.option("--force", is_flag=True, help="Also what was used in the last 15 minutes.")
@_dry_run
@_yes
@root_option
@json_option
def clean(force: bool, dry_run: bool, yes: bool, root: str | None, as_json: bool) -> int:
    """Remove all that is cached in the root: entries, what others left, TorchInductor's files, other JIT caches. Asks.

    Device directories, the record of the devices and the counters stay, and so does what is no cache, or dear.

    \b
    gpucache clean
    gpucache clean --root /scratch/kernels --yes
    """
    from gpucache.upkeep.clean import NO_GRACE, CleanPolicy
    from gpucache.upkeep.plan import plan

    if not (dry_run or yes):
        check_answerable()
    report = scanned(vetted(root))
    policy = CleanPolicy(grace_s=NO_GRACE if force else _default_grace_s(report.root))
    made = plan(report, policy, command_settings())
    return _carry_out(report, made, dry_run, yes, as_json)


def _default_grace_s(root: str) -> float:
    """How many seconds an entry must be unused before it is removed: three times as long as a use may go unstamped."""
    from gpucache.configuration import for_all
    from gpucache.store.recency import stamp_interval

    return 3 * stamp_interval(for_all(root, command_settings()))


def _carry_out(
    report: CacheReport,
    plan: Plan,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Show the plan, ask, execute the plan, and tell the result. The exit code is 1 where the answer was no."""
    planned = cache_rows.plan_row(plan)
    said = {
        **planned,
        "left": list(plan.left),
        "spared": [{"key": one.key, "why": one.why} for one in plan.spared],
        "dry_run": dry_run,
        "removed": None,
    }
    removes_nothing = not any(planned[count] for count, _, _ in _NOUNS)
    if not as_json:
        _show(report, plan, planned)
    if dry_run or removes_nothing:
        if as_json:
            print_json(said)
        elif removes_nothing:
            say(f"note: nothing to remove in {report.root}")
        else:
            say(f"note: {_sum(planned)} would go")
        return 0
    if not yes and not confirmed(f"Remove {_sum(planned)}?"):
        say("note: nothing was removed")
        return 1
    with progress("removing") as show:
        done = plan.execute(show)
    if as_json:
        said["removed"] = cache_rows.removal_row(done)
        print_json(said)
    else:
        _tell_result(done)
    return 0


def _show(report: CacheReport, plan: Plan, planned: Mapping[str, Any]) -> None:
    """Print what would go, what is wrong in the root, and what stays."""
    lines = list(cache_rows.plan_cells(plan, human=is_terminal()))
    if lines:
        print_table(cache_rows.PLAN_COLUMNS, lines)
    tell_findings(report)
    others = []
    for path, views in plan.foreign.items():
        many = counted(views, "view", "views")
        others.append(f"note: {many} in {path}, outside the root, would go with these")
    tell(others)
    tell([f"note: {path} is no cache, and stays" for path in plan.left])
    tell([f"note: {spared.key} stays: {spared.why}" for spared in plan.spared])
    kept = len(planned["kept"])
    if kept:
        say(f"note: {kept} more would go, but were used too recently or are in use")


def _tell_result(done: Outcome) -> None:
    """Say what was kept and why, and how much was freed."""
    tell([f"note: kept {skipped.key}: {skipped.why}" for skipped in done.skipped])
    physical = size(done.freed.physical_bytes)
    logical = size(done.freed.logical_bytes)
    say(f"note: freed {physical} ({logical} with hard links)")


_NOUNS = (
    ("entries", "entry", "entries"),
    ("slimmed", "entry's texts", "entries' texts"),
    ("strays", "stray", "strays"),
    ("files", "file of TorchInductor's", "files of TorchInductor's"),
    ("units", "unit of other JIT caches", "units of other JIT caches"),
    ("leftovers", "leftover of other JIT caches", "leftovers of other JIT caches"),
)
"""Each count of a plan's row, and the noun of what is counted, for one and for many."""


def _sum(planned: Mapping[str, Any]) -> str:
    """How much a plan removes, in words: ``2 entries, 1 stray, 4.0 KiB``."""
    parts = []
    for count, one, many in _NOUNS:
        if planned[count]:
            parts.append(counted(planned[count], one, many))
    if planned["foreign"]:
        views = sum(row["views"] for row in planned["foreign"])
        parts.append(counted(views, "view outside the root", "views outside the root"))
    parts.append(size(planned["physical_bytes"]))
    return ", ".join(parts)
