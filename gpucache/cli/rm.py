"""The command that removes entries by name: `rm`."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    one_entry,
    scanned,
    vetted,
)
from gpucache.cli.options import (
    arch_option,
    json_option,
    kernel_option,
    kind_option,
    root_option,
)
from gpucache.cli.terminal import say
from gpucache.cli.unit_rows import empty_report
from gpucache.cli.usage import WrongUseError

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import EntryKind
    from gpucache.report.selection import Selection


@click.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@kernel_option
@kind_option
@arch_option
@force_option
@all_option
@dry_run_option
@yes_option
@root_option
@json_option
def rm(
    keys: tuple[str, ...],
    kernel: str | None,
    kind: EntryKind | None,
    arch: str | None,
    force: bool,
    all_: bool,
    dry_run: bool,
    yes: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Remove the entries that are named, from the store and all device directories. Asks.

    KEY is a key, or what only one key begins with, as `gpucache ls` shows it; without one, all entries go that are as
    the options say. What is in use stays, as with `prune`, and without --force what was used in the last 15 minutes.
    Exit code 1 where something stays.

    \b
    gpucache rm JRCHT7QYPGJA 3OBGYLUHQ4TL
    gpucache rm --kernel 'matmul*' --arch sm_90
    gpucache rm --kind autotune --dry-run
    """
    from gpucache.report.selection import EVERYTHING, Selection
    from gpucache.upkeep.grace import NO_GRACE
    from gpucache.upkeep.named import NamedPolicy
    from gpucache.upkeep.plan import plan

    selection = Selection(kernel=kernel, kind=kind, arch=arch)
    _check_names(keys, selection != EVERYTHING)
    how = How(dry_run=dry_run, yes=yes, as_json=as_json, each=all_, must_go=True)
    how.check()
    where = vetted(root)
    report = _with_keys(where, keys) if keys else _selected(where, selection)
    policy = NamedPolicy(
        keys=frozenset(entry.key for entry in report.entries),
        grace_s=NO_GRACE if force else default_grace_s(where),
    )
    made = plan(report, policy, command_settings())
    code = carry_out(report, made, how)
    if made.kept and not as_json:
        say("hint: --force removes also what was used just now")
    return code


def _check_names(keys: Sequence[str], is_selected: bool) -> None:
    """Refuse words by which nothing is named, or by mistake everything.

    Raises:
        WrongUseError: there is neither a key nor an option, or both; or a key is empty, as of a variable that is not
            set.
    """
    if keys and is_selected:
        raise WrongUseError(
            "KEY names entries, and --kernel, --kind and --arch choose some",
            "say keys alone, or options alone",
        )
    if not keys and not is_selected:
        raise WrongUseError(
            "nothing is named that is to be removed",
            "say KEY, --kernel, --kind or --arch; `gpucache clean` removes everything",
        )
    if not all(keys):
        raise WrongUseError(
            "a KEY is empty", "say the beginning of a key, as `gpucache ls` shows it"
        )


def _with_keys(root: str, keys: Sequence[str]) -> CacheReport:
    """A report of these entries alone; the rest of the root is not looked at.

    Raises:
        NoEntryError: there is no such entry, or more than one.
    """
    found = {}
    for key in keys:
        entry = one_entry(root, key)
        found[entry.key] = entry
    return replace(empty_report(root), entries=tuple(found.values()))


def _selected(root: str, selection: Selection) -> CacheReport:
    """A report of the root with the selected entries alone.

    Raises:
        NotCachedError: nothing there has such a kernel or architecture.
    """
    report = scanned(root)
    check_kernel(report, "--kernel", selection.kernel)
    if selection.arch is not None:
        check_cached(report.root, "--arch", selection.arch, archs_in(report))
    now = time.time()
    chosen = [entry for entry in report.entries if selection.has(entry, now)]
    return replace(report, entries=tuple(chosen))
