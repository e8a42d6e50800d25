"""How `rm`, `prune` and `clean` carry out what they have planned: they show it, ask, execute it and tell the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpucache.cli.common import command_settings, counted, tell, tell_findings
from gpucache.cli.plan_rows import plan_row, print_plan, removal_row
from gpucache.cli.terminal import check_answerable, confirmed, print_json, progress, say
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.upkeep.execution import Outcome
    from gpucache.upkeep.plan import Plan

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
all_option = click.option(
    "--all", "all_", is_flag=True, help="List each of very many; else sums and the ten largest."
)
force_option = click.option(
    "--force", is_flag=True, help="Also what was used in the last 15 minutes."
)
dry_run_option = click.option("--dry-run", "-n", is_flag=True, help="Only show what would go.")


def default_grace_s(root: str) -> float:
    """How many seconds an entry must be unused before it is removed: three times as long as a use may go unstamped."""
    from gpucache.configuration import for_all
    from gpucache.store.recency import stamp_interval

    return 3 * stamp_interval(for_all(root, command_settings()))


class How(NamedTuple):
    """How a plan is to be shown and carried out."""

    dry_run: bool
    yes: bool
    as_json: bool
    each: bool
    """Whether each part of a long plan is listed."""
    must_go: bool = False
    """Whether something that stays is a failure."""

    def check(self) -> None:
        """Raise where somebody has to be asked, and nobody can be.

        Raises:
            UsageError: stdin or stderr is no terminal.
        """
        if not (self.dry_run or self.yes):
            check_answerable()


def carry_out(report: CacheReport, plan: Plan, how: How) -> int:
    """Show the plan, ask, execute it, and tell the result. The exit code is 1 where the answer was no.

    Where all must go, it is 1 as well where something stays.
    """
    planned = plan_row(plan)
    said = {
        **planned,
        "left": list(plan.left),
        "spared": [{"key": one.key, "why": one.why} for one in plan.spared],
        "dry_run": how.dry_run,
        "removed": None,
    }
    removes_nothing = not any(planned[count] for count, _, _ in _NOUNS)
    if not how.as_json:
        _show(report, plan, planned, how.each)
    if how.dry_run or removes_nothing:
        if how.as_json:
            print_json(said)
        elif removes_nothing:
            say(f"note: nothing to remove in {report.root}")
        else:
            say(f"note: {_sum(planned)} would go")
        return 1 if how.must_go and plan.kept and not how.dry_run else 0
    if not how.yes and not confirmed(f"Remove {_sum(planned)}?"):
        say("note: nothing was removed")
        return 1
    with progress("removing") as show:
        done = plan.execute(show)
    if how.as_json:
        said["removed"] = removal_row(done)
        print_json(said)
    else:
        _tell_result(done)
    return 1 if how.must_go and (plan.kept or done.skipped) else 0


def _show(report: CacheReport, plan: Plan, planned: Mapping[str, Any], each: bool) -> None:
    """Print what would go, what is wrong in the root, and what stays."""
    print_plan(plan, each)
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
