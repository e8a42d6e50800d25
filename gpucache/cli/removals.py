"""The commands that bound what is cached, and empty it: `prune`, `clean`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gpucache.cli.carry_out import (
    How,
    all_option,
    carry_out,
    default_grace_s,
    dry_run_option,
    force_option,
    yes_option,
)
from gpucache.cli.common import (
    archs_in,
    check_cached,
    check_kernel,
    command_settings,
    scanned,
    vetted,
)
from gpucache.cli.options import (
    SIZE,
    TIME,
    arch_option,
    is_arch,
    json_option,
    kernel_option,
    kind_option,
    root_option,
    roots_option,
)
from gpucache.cli.terminal import progress, say
from gpucache.cli.unit_rows import cache_option, empty_report, refuse
from gpucache.errors import NotCachedError
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.layout.jit_cache import JitCache
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import EntryKind
    from gpucache.upkeep.jit_prune import UnitPolicy
    from gpucache.upkeep.plan import Plan


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
@kernel_option
@kind_option
@arch_option
@click.option(
    "--triton-version",
    metavar="SPEC",
    help="Only entries of these versions of Triton: '<3.6', 3.9.0.",
)
@click.option(
    "--losers",
    is_flag=True,
    help="Only kernels that an autotuner has measured and not taken, as its cached results tell.",
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
@all_option
@dry_run_option
@yes_option
@roots_option
@json_option
def prune(
    max_size: int | None,
    max_age: float | None,
    max_entries: int | None,
    kernel: str | None,
    kind: EntryKind | None,
    arch: str | None,
    triton_version: str | None,
    losers: bool,
    keep_binaries: bool,
    inductor: bool,
    caches: tuple[JitCache, ...] | None,
    grace: float | None,
    time_limit: float,
    all_: bool,
    dry_run: bool,
    yes: bool,
    roots: tuple[str, ...],
    as_json: bool,
) -> int:
    """Remove entries that are old, over a limit or of no more use, and what killed processes left.

    --kernel, --kind, --arch, --triton-version and --losers choose what may go, the limits say how much of it, least
    recently used first; without a limit all that was chosen goes; with neither, only strays. An entry goes whole, from
    the store and all device directories, and never while it is in use. With --cache entries stay, and whole units of
    other JIT caches go, never while their software makes them.

    Several --root, or what a pattern in quotes stands for, are pruned each in a process of its own. Under sudo that
    process first gives root's rights up for those of the root's owner.

    \b
    gpucache prune --max-size 20GiB --max-age 30d --yes
    gpucache prune --max-size 30GiB --inductor --yes
    gpucache prune --triton-version '<3.6' --dry-run
    gpucache prune --kernel 'old_*' --max-age 7d
    gpucache prune --losers
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
            kernel=kernel,
            kind=kind,
            arch=arch,
            triton_version=triton_version,
            losers=losers,
            keep_binaries=keep_binaries,
            inductor=inductor,
        )
    policy = PrunePolicy(
        max_size_bytes=max_size,
        max_age_s=max_age,
        max_entries=max_entries,
        kernel=kernel,
        kind=kind,
        arch=arch,
        triton_version=triton_version,
        losers=losers,
        keep_binaries=keep_binaries,
        inductor=inductor,
    )
    units = None
    if caches is not None:
        units = UnitPolicy(caches=caches, max_size_bytes=max_size, max_age_s=max_age)
    if are_many(roots):
        order = Order(policy=units or policy, grace_s=grace, dry_run=dry_run, limit_s=time_limit)
        return prune_many(roots, order, yes, as_json)
    policy.check()
    how = How(dry_run=dry_run, yes=yes, as_json=as_json, each=all_)
    how.check()
    where = vetted(roots[0] if roots else None)
    grace_s = default_grace_s(where) if grace is None else grace
    if units is not None:
        made = _planned_units(where, replace(units, grace_s=grace_s))
        return carry_out(empty_report(where), made, how)
    policy = replace(policy, grace_s=grace_s)
    report = scanned(where)
    if arch is not None and not is_arch(arch):
        check_cached(report.root, "--arch", arch, archs_in(report))
    _note_kernel(report, kernel)
    made = plan(report, policy, command_settings())
    if losers and not (made.removing or made.slimming or made.kept):
        say(
            "note: no cached result of an autotuner tells of a loser here; Triton keeps results with"
        )
        say("      cache_results=True of triton.autotune, or with TRITON_CACHE_AUTOTUNING=1")
    is_bounded = max_size is not None or max_age is not None
    if is_bounded and not inductor and not as_json:
        _tell_of_inductor(report)
    return carry_out(report, made, how)


def _planned_units(root: str, policy: UnitPolicy) -> Plan:
    """What goes of other JIT caches, as `prune` says with ``--cache``."""
    with progress("looking"):
        return policy.planned(root)


def _tell_of_inductor(report: CacheReport) -> None:
    """Say how much of TorchInductor's stays unasked."""
    from gpucache.layout.inductor import levels

    taken = sum(part.physical_bytes for part in report.usage if levels(part.name))
    if taken:
        say(f"note: TorchInductor's files ({size(taken)}) neither count nor go without --inductor")


def _note_kernel(report: CacheReport, pattern: str | None) -> None:
    """Say that no kernel has a name like a pattern, which is no error of `prune`: the last one may have gone."""
    try:
        check_kernel(report, "--kernel", pattern)
    except NotCachedError as error:
        say(f"note: {error.problem}; {error.hint}")


@click.command()
@force_option
@all_option
@dry_run_option
@yes_option
@root_option
@json_option
def clean(
    force: bool, all_: bool, dry_run: bool, yes: bool, root: str | None, as_json: bool
) -> int:
    """Remove all that is cached in the root: entries, what others left, TorchInductor's files, other JIT caches. Asks.

    Device directories, the record of the devices and the counters stay, and so does what is no cache, or dear.

    \b
    gpucache clean
    gpucache clean --root /scratch/kernels --yes
    """
    from gpucache.upkeep.clean import CleanPolicy
    from gpucache.upkeep.grace import NO_GRACE
    from gpucache.upkeep.plan import plan

    how = How(dry_run=dry_run, yes=yes, as_json=as_json, each=all_)
    how.check()
    report = scanned(vetted(root))
    policy = CleanPolicy(grace_s=NO_GRACE if force else default_grace_s(report.root))
    made = plan(report, policy, command_settings())
    return carry_out(report, made, how)
