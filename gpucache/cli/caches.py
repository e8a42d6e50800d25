"""The commands that look at each entry: `ls` and `verify`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpucache.cli import cache_rows
from gpucache.cli.common import (
    archs_in,
    check_cached,
    check_kernel,
    counted,
    existing,
    finding_rows,
    one_entry,
    remember_findings,
    scanned,
    tell_findings,
    vetted,
)
from gpucache.cli.entry_rows import entry_columns, print_entries
from gpucache.cli.findings import all_option, print_findings
from gpucache.cli.next_steps import where_nothing_is_cached
from gpucache.cli.options import (
    SIZE,
    TIME,
    arch_option,
    codes_option,
    json_option,
    kernel_option,
    kind_option,
    root_option,
)
from gpucache.cli.tables import Choice, check_columns, print_codes, table_options
from gpucache.cli.terminal import (
    print_json,
    print_json_rows,
    progress,
    say,
)
from gpucache.cli.unit_rows import (
    UNIT_COLUMNS,
    Chosen,
    cache_option,
    list_units,
    refuse,
    verify_units,
)
from gpucache.cli.whole_entry import print_whole

if TYPE_CHECKING:
    from gpucache.layout.jit_cache import JitCache
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry, EntryKind
    from gpucache.report.selection import Selection

_ENTRY_COLUMNS = [one.column for one in entry_columns()]
_ORDERS: dict[str, tuple[Callable[[Entry], Any], bool]] = {
    "used": (lambda entry: entry.used, True),
    "created": (lambda entry: entry.created, True),
    "size": (lambda entry: entry.physical_bytes, True),
    "kernel": (lambda entry: entry.kernel, False),
    "key": (lambda entry: entry.key, False),
}
"""By what entries are sorted, and whether the largest or newest comes first where nobody says otherwise."""


@click.command()
@click.argument("key", required=False)
@kernel_option
@arch_option
@click.option("--directory", metavar="NAME", help="Only entries in this device directory.")
@click.option(
    "--older-than", type=TIME, metavar="TIME", help="Only entries not used for so long (30d, 12h)."
)
@click.option(
    "--larger-than", type=SIZE, metavar="SIZE", help="Only entries of more physical bytes (1MiB)."
)
@kind_option
@click.option(
    "--unused", is_flag=True, help="Only entries not used since five minutes after they were made."
)
@cache_option("List instead the units of these other JIT caches, what of them may go alone")
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="used", show_default=True)
@click.option(
    "--asc/--desc",
    "ascending",
    default=None,
    help="Sort upward or downward; by itself the newest, the largest, or A comes first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@table_options(_ENTRY_COLUMNS, or_these=UNIT_COLUMNS)
@root_option
@json_option
def ls(
    key: str | None,
    kernel: str | None,
    arch: str | None,
    directory: str | None,
    older_than: float | None,
    larger_than: int | None,
    kind: EntryKind | None,
    unused: bool,
    caches: tuple[JitCache, ...] | None,
    sort: str,
    ascending: bool | None,
    limit: int | None,
    wide: bool,
    columns: tuple[str, ...] | None,
    root: str | None,
    as_json: bool,
) -> None:
    """List the cached entries, or show the one with KEY (or that alone begins with KEY) whole.

    What has no room on the terminal is left out, and --wide shows it. Of constants those come first in which the
    listed entries of one kernel differ. Whole: its options, registers, shared memory and files, and the path of the
    cubin, for cuobjdump.

    \b
    gpucache ls
    gpucache ls --kernel matmul --columns key,constants,warps,stages,regs,spills,smem
    gpucache ls --unused --sort size
    gpucache ls --kernel '*attn*' --arch sm_90 --sort size --limit 20
    gpucache ls --older-than 30d --larger-than 1MiB --json
    gpucache ls --cache flashinfer,warp --sort size
    """
    from gpucache.report.selection import Selection

    if caches is not None:
        refuse(key=key, kernel=kernel, arch=arch, directory=directory, kind=kind, unused=unused)
        check_columns(columns, UNIT_COLUMNS)
        chosen = Chosen(older_than, larger_than, sort, ascending, limit)
        list_units(existing(root), caches, chosen, Choice(wide, columns), as_json)
        return
    check_columns(columns, _ENTRY_COLUMNS)
    selection = Selection(
        kernel=kernel,
        arch=arch,
        directory=directory,
        older_than_s=older_than,
        larger_than_bytes=larger_than,
        kind=kind,
        unused=unused,
    )
    if key is None:
        order = _Order(sort, ascending, limit)
        is_empty = _list(existing(root), selection, order, Choice(wide, columns), as_json)
        if is_empty and not as_json:
            where_nothing_is_cached(root)
    elif selection == Selection() and limit is None:
        print_whole(one_entry(existing(root), key), as_json)
    else:
        raise click.UsageError(
            "KEY shows one entry, and nothing of a list: leave the filters and --limit out"
        )


class _Order(NamedTuple):
    """In which order entries are listed, and how many of them."""

    by: str
    ascending: bool | None
    limit: int | None

    def of(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that are listed."""
        key, is_descending = _ORDERS[self.by]
        if self.ascending is not None:
            is_descending = not self.ascending
        return sorted(entries, key=key, reverse=is_descending)[: self.limit]


def _list(root: str, selection: Selection, order: _Order, choice: Choice, as_json: bool) -> bool:
    """Print the entries of a selection in an order, and warn of what is wrong in the root; whether that has none."""
    report = scanned(root)
    _check_named(report, selection)
    now = time.time()
    found = [entry for entry in report.entries if selection.has(entry, now)]
    listed = order.of(found)
    if as_json:
        about = {"root": report.root, "findings": finding_rows(report.findings)}
        rows = [cache_rows.entry_row(entry) for entry in listed]
        print_json_rows(about, "entries", rows)
        return not report.entries
    print_entries(report.root, listed, len(found), choice, now)
    tell_findings(report)
    if report.entries and not found:
        entries = counted(len(report.entries), "entry", "entries")
        say(f"note: none of {entries} in {report.root} is like that")
    return not report.entries


def _check_named(report: CacheReport, selection: Selection) -> None:
    """Refuse filters each of which alone names nothing of what is cached; together they may leave nothing.

    Raises:
        NotCachedError: there is no such kernel, architecture or device directory.
    """
    check_kernel(report, "--kernel", selection.kernel)
    if selection.arch is not None:
        check_cached(report.root, "--arch", selection.arch, archs_in(report))
    if selection.directory is not None:
        names = [device.name for device in report.devices]
        for entry in report.entries:
            names += entry.directories
        check_cached(report.root, "--directory", selection.directory, names)


@click.command()
@click.option(
    "--repair", is_flag=True, help="Mend what can be mended, and move the rest to quarantine."
)
@cache_option("Check instead the files of these other JIT caches; --repair removes their units")
@all_option
@codes_option
@root_option
@json_option
def verify(
    repair: bool,
    caches: tuple[JitCache, ...] | None,
    all_: bool,
    codes: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Check every digest, every path in a group and every JSON file. Exit code 1 when something is wrong and stays so.

    From two thousand kernels on as many processes look as there are cores, one for a thousand kernels.

    \b
    gpucache verify
    gpucache verify --repair --json
    gpucache verify --cache numba,torch-extensions --repair
    """
    from gpucache.upkeep.jit_verify import UNIT_CODES
    from gpucache.upkeep.verify import CODES
    from gpucache.upkeep.verify import verify as check

    if codes:
        return print_codes({**CODES, **UNIT_CODES}, as_json)
    where = vetted(root) if repair else existing(root)
    if caches is not None:
        return verify_units(where, caches, repair, as_json, all_)
    with progress("verifying") as show:
        done = check(where, repair, show)
    remember_findings(where, "verify", [checked.finding for checked in done.unrepaired])
    if as_json:
        print_json(done.as_json())
    else:
        findings = [checked.finding for checked in done.findings]
        notes = [checked.note for checked in done.findings]
        print_findings(findings, notes, codes=CODES, each=all_)
        entries = counted(done.entries, "entry", "entries")
        wrong = counted(len(findings), "finding", "findings")
        say(f"note: {entries} checked in {done.root}, {wrong}")
    return 1 if done.unrepaired else 0
