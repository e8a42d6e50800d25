"""The commands about what is cached: `ls`, `du`, `prune`, `clean`, `verify`."""

from __future__ import annotations

import fnmatch
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli import cache_rows as formats
from gpucache.cli.options import codes_option, json_option, root_option
from gpucache.cli.terminal import (
    check_answerable,
    confirmed,
    is_terminal,
    print_codes,
    print_findings,
    print_json,
    print_json_rows,
    print_table,
    progress,
    say,
)
from gpucache.errors import ConfigurationError, NoEntryError
from gpucache.layout.paths import ours, resolve_root
from gpucache.units import parse_duration, parse_size, size

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry
    from gpucache.upkeep.clean import CleanPlan
    from gpucache.upkeep.prune import PrunePlan


class _Unit(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4, and not before
    """A size or a time, as people write them."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The number."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, context)


_TOLD = 10
SIZE = _Unit("size", parse_size)
TIME = _Unit("time", parse_duration)

_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
_dry_run = click.option("--dry-run", "-n", is_flag=True, help="Only show what would go.")
_arch = click.option(
    "--arch",
    metavar="ARCH",
    callback=lambda _, __, value: f"sm_{value}" if value and value[:1].isdigit() else value,
    help="Only entries for this architecture, such as sm_90.",
)

_ORDERS: dict[str, Callable[[Entry], Any]] = {
    "used": lambda entry: -entry.used,
    "created": lambda entry: -entry.created,
    "size": lambda entry: -entry.physical_bytes,
    "kernel": lambda entry: entry.kernel,
    "key": lambda entry: entry.key,
}


@click.command()
@click.argument("key", required=False)
@click.option("--kernel", metavar="GLOB", help="Only entries whose kernel's name matches.")
@_arch
@click.option("--directory", metavar="NAME", help="Only entries in this device directory.")
@click.option(
    "--older-than", type=TIME, metavar="TIME", help="Only entries not used for so long (30d, 12h)."
)
@click.option(
    "--larger-than", type=SIZE, metavar="SIZE", help="Only entries of more physical bytes (1MiB)."
)
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="used", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@root_option
@json_option
def ls(
    key: str | None,
    kernel: str | None,
    arch: str | None,
    directory: str | None,
    older_than: float | None,
    larger_than: int | None,
    sort: str,
    limit: int | None,
    root: str | None,
    as_json: bool,
) -> None:
    """List the cached entries, or show the one with KEY (or that alone begins with KEY) whole.

    Whole: its options, registers, shared memory and files, and the path of the cubin, for cuobjdump.

    \b
    gpucache ls
    gpucache ls --kernel '*attn*' --arch sm_90 --sort size --limit 20
    gpucache ls --older-than 30d --larger-than 1MiB --json
    """
    if key is not None and any(
        one is not None for one in (kernel, arch, directory, older_than, larger_than, limit)
    ):
        raise click.UsageError(
            "KEY shows one entry, and nothing of a list: leave the filters and --limit out"
        )
    if key is not None:
        _show(one_entry(existing(root), key), as_json)
        return
    report = scanned(root)
    now = time.time()
    found = [
        entry
        for entry in report.entries
        if (kernel is None or fnmatch.fnmatchcase(entry.kernel, kernel))
        and (arch is None or entry.arch == arch)
        and (directory is None or directory in entry.directories)
        and (older_than is None or now - entry.used > older_than)
        and (larger_than is None or entry.physical_bytes > larger_than)
    ]
    found = sorted(found, key=_ORDERS[sort])[:limit]
    if as_json:
        about = {
            "root": report.root,
            "findings": [finding.as_json() for finding in report.findings],
        }
        print_json_rows(about, "entries", [formats.entry_row(entry) for entry in found])
        return
    cells = formats.entry_cells if is_terminal() else formats.entry_fields
    print_table(formats.ENTRY_COLUMNS, [cells(entry, now) for entry in found], folded=())
    _tell_findings(report)
    if report.entries and not found:
        say(
            f"note: none of {_counted(len(report.entries), 'entry', 'entries')} in {report.root} is like that"
        )


def _show(entry: Entry, as_json: bool) -> None:
    whole = formats.entry_whole(entry)
    if as_json:
        print_json(whole)
    else:
        print_table(
            ("field", "value"), formats.field_cells(whole, human=is_terminal()), folded=("value",)
        )


@click.command()
@click.option(
    "--by",
    type=click.Choice(["bucket", "device", "arch", "kernel"]),
    default="bucket",
    show_default=True,
)
@root_option
@json_option
def du(by: str, root: str | None, as_json: bool) -> None:
    """Show what the caches take: logical bytes (hard links counted each time) and physical bytes (once).

    Each file counts once, in the first row that has it, so that the physical bytes add up; the store comes first.
    By device, architecture or kernel only entries are counted.

    \b
    gpucache du
    gpucache du --by kernel --json
    """
    report = scanned(root)
    rows = formats.usage_rows(report, by)
    everything = {"name": "all"} | {
        name: sum(row[name] for row in rows) for name in formats.USAGE_COLUMNS[1:]
    }
    if as_json:
        print_json({"root": report.root, "by": by, "rows": rows, "all": everything})
        return
    shown = [formats.usage_cells(row, human=is_terminal()) for row in (*rows, everything)]
    print_table(formats.USAGE_COLUMNS, shown, folded=("name",))
    _tell_findings(report)


@click.command()
@click.option(
    "--max-size",
    type=SIZE,
    metavar="SIZE",
    help="Keep the entries' physical bytes below this (20GiB).",
)
@click.option(
    "--max-age", type=TIME, metavar="TIME", help="Remove what was not used for so long (30d)."
)
@click.option(
    "--max-entries", type=click.IntRange(min=0), metavar="N", help="Keep so many entries."
)
@_arch
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
    "--grace",
    type=TIME,
    metavar="TIME",
    help="Never touch what was used in this time (default 15min).",
)
@_dry_run
@_yes
@root_option
@json_option
def prune(
    max_size: int | None,
    max_age: float | None,
    max_entries: int | None,
    arch: str | None,
    triton_version: str | None,
    keep_binaries: bool,
    grace: float | None,
    dry_run: bool,
    yes: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Remove entries that are old, over a limit or of no more use, and what killed processes left.

    --arch and --triton-version choose what may go, the limits say how much of it, least recently used first; without a
    limit all that was chosen goes; with neither, only strays. An entry goes whole, from the store and all device
    directories, and never while it is in use.

    \b
    gpucache prune --max-size 20GiB --max-age 30d --yes
    gpucache prune --triton-version '<3.6' --dry-run
    gpucache prune --keep-binaries --max-age 7d --yes
    """
    from gpucache.store.recency import stamp_interval
    from gpucache.upkeep.prune import PrunePolicy, plan

    if not (dry_run or yes):
        check_answerable()
    policy = PrunePolicy(
        max_size_bytes=max_size,
        max_age_s=max_age,
        max_entries=max_entries,
        arch=arch,
        triton_version=triton_version,
        keep_binaries=keep_binaries,
        grace_s=3 * stamp_interval(os.environ) if grace is None else grace,
    )
    report = scanned(root, vetted=True)
    return _carry_out(report, plan(report, policy, os.environ), (), dry_run, yes, as_json)


@click.command()
@click.option("--force", is_flag=True, help="Also what was used in the last 15 minutes.")
@_dry_run
@_yes
@root_option
@json_option
def clean(force: bool, dry_run: bool, yes: bool, root: str | None, as_json: bool) -> int:
    """Remove all that is cached in the root: entries, what others left, TorchInductor's files. Asks first.

    Device directories, the record of the devices and the counters stay, and so does what is no cache.

    \b
    gpucache clean
    gpucache clean --root /scratch/kernels --yes
    """
    from gpucache.store.recency import stamp_interval
    from gpucache.upkeep.clean import clean_plan

    if not (dry_run or yes):
        check_answerable()
    report = scanned(root, vetted=True)
    made = clean_plan(report, -math.inf if force else 3 * stamp_interval(os.environ))
    return _carry_out(report, made, made.left, dry_run, yes, as_json)


def _carry_out(
    report: CacheReport,
    plan: PrunePlan | CleanPlan,
    left: Sequence[str],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Show the plan, ask, execute, tell; the exit code, which is 1 where the answer was no."""
    planned = formats.plan_row(plan)
    said = {**planned, "left": list(left), "dry_run": dry_run, "removed": None}
    nothing = not any(planned[name] for name in ("entries", "slimmed", "strays", "files"))
    if not as_json:
        if not nothing:
            print_table(
                formats.PLAN_COLUMNS,
                list(formats.plan_cells(plan, human=is_terminal())),
                folded=("name",),
            )
        _tell_findings(report)
        _tell([f"note: {path} is no cache, and stays" for path in left])
        if planned["kept"]:
            say(
                f"note: {len(planned['kept'])} more would go, but were used too recently or are in use"
            )
        if dry_run or nothing:
            say(
                f"note: {_sum(planned)} would go"
                if not nothing
                else f"note: nothing to remove in {report.root}"
            )
    elif dry_run or nothing:
        print_json(said)
    if dry_run or nothing:
        return 0
    if not yes and not confirmed(f"Remove {_sum(planned)}?"):
        say("note: nothing was removed")
        return 1
    with progress("removing") as show:
        done = plan.execute(show)
    if as_json:
        print_json({**said, "removed": formats.removal_row(done)})
    else:
        _tell([f"note: kept {skipped.key}: {skipped.why}" for skipped in done.skipped])
        say(
            f"note: freed {size(done.freed.physical_bytes)} ({size(done.freed.logical_bytes)} with hard links)"
        )
    return 0


def _sum(planned: dict[str, Any]) -> str:
    kinds = (
        ("entries", "entry", "entries"),
        ("slimmed", "entry's texts", "entries' texts"),
        ("strays", "stray", "strays"),
        ("files", "file of TorchInductor's", "files of TorchInductor's"),
    )
    parts = [_counted(planned[name], one, many) for name, one, many in kinds if planned[name]]
    return f"{', '.join(parts)}, {size(planned['physical_bytes'])}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


@click.command()
@click.option(
    "--repair", is_flag=True, help="Mend what can be mended, and move the rest to quarantine."
)
@codes_option
@root_option
@json_option
def verify(repair: bool, codes: bool, root: str | None, as_json: bool) -> int:
    """Check every digest, every path in a group and every JSON file. Exit code 1 when something is wrong and stays so.

    From two thousand kernels on as many processes look as there are cores, one for a thousand kernels.

    \b
    gpucache verify
    gpucache verify --repair --json
    """
    from gpucache.upkeep.verify import CODES
    from gpucache.upkeep.verify import verify as check

    if codes:
        return print_codes(CODES, as_json)
    where = existing(root)
    if repair:
        _vet(where)
        _refuse_device_directory(where)
    with progress("verifying") as show:
        found = check(where, repair, show)
    if as_json:
        print_json(found.as_json())
    else:
        print_findings(
            [one.finding for one in found.findings], [one.note for one in found.findings]
        )
        checked = _counted(found.entries, "entry", "entries")
        say(
            f"note: {checked} checked in {found.root}, {_counted(len(found.findings), 'finding', 'findings')}"
        )
    return 1 if found.unrepaired else 0


# ---- what several commands share


def scanned(root: str | None, vetted: bool = False) -> CacheReport:
    """What is in the root; ``vetted`` before anything is written or deleted there."""
    from gpucache.report.cache_report import scan

    where = existing(root)
    if vetted:
        _vet(where)
        _refuse_device_directory(where)
    with progress("looking") as show:
        return scan(where, show)


def existing(root: str | None) -> str:
    """The root that a command is about; where there is nothing, a note says so."""
    where = resolve_root(root, os.environ)
    if not os.path.lexists(where):
        say(f"note: there is no {where}")
    return where


def _refuse_device_directory(root: str) -> None:
    """Its locks and its store are those of the root that it belongs to.

    Raises:
        ConfigurationError: it is one.
    """
    parent, name = os.path.split(os.path.realpath(root))
    whole = os.path.dirname(parent)
    if os.path.basename(parent) == "triton" and os.path.isdir(ours(whole)):
        raise ConfigurationError(
            "--root", root, f"a root, but the directory of device {name} in {whole}"
        )


def _vet(root: str) -> None:
    """Nothing is deleted or written where somebody else could have planted it."""
    from gpucache.disk.vetting import Trust, vet, vet_child
    from gpucache.layout.paths import our_directories

    trust = Trust.parse(os.environ)
    vet(root, trust)
    for path in our_directories(root):
        vet_child(path, trust)


def one_entry(root: str, key: str) -> Entry:
    """The entry of a key, or of what only one key begins with.

    Raises:
        NoEntryError: there is none, or more than one.
    """
    from gpucache.report.find import find_entries

    with progress("looking") as show:
        found = find_entries(root, key, show)
    if len(found) != 1:
        raise NoEntryError(os.path.realpath(root), key, tuple(entry.key for entry in found))
    return found[0]


def _tell_findings(report: CacheReport) -> None:
    _tell(
        [
            f"warning: {finding.subject}: {finding.fact}; {finding.fix}"
            for finding in report.findings
        ]
    )


def _tell(lines: Sequence[str]) -> None:
    """Say the first of many lines."""
    for line in lines[:_TOLD]:
        say(line)
    if len(lines) > _TOLD:
        say(f"note: and {len(lines) - _TOLD} more such; --json names each")
