"""The command `gpucache warm`, which compiles what recipes say into the store."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from gpucache import environment
from gpucache.cli.common import command_settings, counted, tell, vetted
from gpucache.cli.options import TIME, jobs_option, json_option, path_of, root_option
from gpucache.cli.settings import undoing
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, progress, say
from gpucache.errors import ConfigurationError, NoRootError, RecipesError
from gpucache.warm.ahead.compile_files import (
    leave_keys,
    read_files,
    read_store,
    sources_before,
)
from gpucache.warm.pool.pool import TIME_LIMIT_S, Pool
from gpucache.warm.pool.shard import WHOLE, Shard, parse_shard
from gpucache.warm.targets import parse_targets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

    from gpucache.cli.terminal import Show
    from gpucache.kernels.recipe import Recipe, Target
    from gpucache.warm.ahead.compile_files import GivenRecipes
    from gpucache.warm.ahead.made_keys import MadeKeys
    from gpucache.warm.outcome import Outcome
    from gpucache.warm.pool.report import Progress, WarmReport

_COLUMNS = (
    Column("end"),
    Column("target", weight=30),
    Column("kernel"),
    Column("key", weight=20),
    Column("seconds", weight=10, right=True),
    Column("why", whole=False),
)
_MOST_NAMES = 3


def _targets(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[Target, ...]:
    try:
        found = parse_targets(value or "")
    except ConfigurationError as error:
        raise _wrong_usage(error) from None
    if value is not None and not found:
        raise click.BadParameter("no architecture is named")
    return found


def _shard(context: click.Context, option: click.Parameter, value: str | None) -> Shard:
    if value is None:
        return WHOLE
    try:
        return parse_shard(value)
    except ConfigurationError as error:
        raise _wrong_usage(error) from None


def _wrong_usage(error: ConfigurationError) -> click.BadParameter:
    """What click shows behind the name of the option."""
    return click.BadParameter(f"{error.value!r} is not {error.expected}")


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(allow_dash=True))
@click.option("--store", is_flag=True, help="The recipes of all entries in the root's store.")
@click.option(
    "--arch",
    "targets",
    metavar="ARCH,…",
    callback=_targets,
    help="Compile for these, such as sm_80,sm_90,gfx942 (default: what each was recorded for).",
)
@jobs_option("So many kernels at once (default: one a core).")
@click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    help="Only the I-th of N parts, by the recipes' keys.",
)
@click.option(
    "--time-limit",
    type=TIME,
    metavar="TIME",
    default=TIME_LIMIT_S,
    help="Give one kernel, and the import of one module, so long (default 300s).",
)
@click.option("--exact", is_flag=True, help="Compile nothing whose source has changed.")
@click.option(
    "--main",
    metavar="FILE",
    callback=path_of,
    help="The script whose kernels were recorded in __main__; it is imported, and needs a guard.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Compile nothing; tell what would be.")
@click.option("--list", "lists", is_flag=True, help="List every recipe, not only the counts.")
@root_option
@json_option
def warm(
    files: tuple[str, ...],
    store: bool,
    targets: tuple[Target, ...],
    jobs: int | None,
    shard: Shard,
    time_limit: float,
    exact: bool,
    main: str | None,
    dry_run: bool,
    lists: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Compile what recipes say into the store, on all cores and without a GPU, before a program asks for it.

    FILE has the recipes of `gpucache recipe` or of `gpucache run --record`; - is stdin. This imports the modules that
    recipes name, and so runs their code: start it where the program starts, with the program's Python.

    \b
    gpucache recipe > recipes.jsonl
    gpucache warm recipes.jsonl
    gpucache warm recipes.jsonl --arch sm_80,sm_90 --dry-run
    gpucache warm --store -j 8
    """
    if bool(files) == store:
        raise click.UsageError("name a FILE of recipes, or say --store")
    for off in environment.turned_off(command_settings()):
        if off.name == environment.DISABLE.name:
            say(f"error: {off.name}={off.value}: {off.consequence}")
            say(f"hint: {undoing(off.name, root)}")
            return 1
    where = _root(root)
    given = read_store(where) if store else read_files(files, _stdin())
    tell([f"warning: {bad.path}, line {bad.number}: {bad.reason}" for bad in given.bad])
    if not given.recipes:
        named = where if store else " ".join(files)
        raise RecipesError(named, "there is no recipe")
    say("note: this imports the modules that recipes name, and so runs their code")
    leaves_keys = not (dry_run or exact) and shard == WHOLE
    report = _run(
        given.recipes,
        sources_before(given.paths) if leaves_keys else {},
        root=where,
        targets=targets,
        jobs=jobs,
        time_limit_s=time_limit,
        exact=exact,
        dry_run=dry_run,
        main=main,
        sources=given.trusted,
        shard=shard,
    )
    if as_json:
        print_json(_row(where, dry_run, report, given))
    else:
        _print(report, lists)
    return 1 if "failed" in report.counts or report.left else 0


def _stdin() -> BinaryIO | None:
    """Stdin as bytes; None where the process that started this one has closed it."""
    return None if sys.stdin is None else sys.stdin.buffer


def _root(root: str | None) -> str:
    """The vetted root, which must be there: `provision` and `run` make one.

    Raises:
        NoRootError, UnsafeDirectoryError, ProvisionError: as `vetted`.
    """
    where = vetted(root)
    if not os.path.isdir(where):
        raise NoRootError(where, "missing", None)
    return where


def _run(recipes: Sequence[Recipe], before: Mapping[str, MadeKeys], **options: Any) -> WarmReport:
    """Run a pool while a bar shows what it is at; leave beside the store which keys were made."""
    with progress("compiling") as show:
        pool = Pool(recipes, on_progress=_bar(show), **options)
        try:
            report = pool.run()
        except KeyboardInterrupt:
            say("")  # what comes next begins a line
            say(f"note: interrupted: {_sum(pool.report)}; what was compiled stays")
            raise
    if not report.left:
        leave_keys(before, report.outcomes, options["root"], options["targets"])
    return report


def _bar(show: Show | None) -> Any:
    if show is None:
        return None

    def told(progress: Progress) -> None:
        names = [one.kernel for one in progress.compiling]
        names += [f"import {module}" for module in progress.importing]
        more = len(names) - _MOST_NAMES
        what = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
        show(progress.done, progress.total, what or "compiling")

    return told


def _print(report: WarmReport, lists: bool) -> None:
    """Print the counts, after the list where that was asked for, and say what a person should know of."""
    if lists:
        rows = list(map(_cells, report.outcomes))
        print_table(_COLUMNS, rows)
        say(f"note: {_sum(report)}")
    else:
        counts = [(end, str(count)) for end, count in report.counts.items()]
        print_table((Column("end"), Column("recipes", right=True)), counts)
        tell([_complaint(one) for one in report.outcomes if one.why and _is_told(one)])
    if report.left:
        left = counted(report.left, "recipe was", "recipes were")
        say(f"error: {left} not gone through: {report.why_left}")


def _is_told(outcome: Outcome) -> bool:
    """Whether the counts alone leave the question why."""
    return outcome.end in ("failed", "cannot be imported", "differs here", "source changed")


def _complaint(outcome: Outcome) -> str:
    level = "error" if outcome.end == "failed" else "warning"
    return f"{level}: {outcome.kernel} ({outcome.target}): {outcome.end}: {outcome.why}"


def _sum(report: WarmReport) -> str:
    """The counts in words: ``3 made, 1 failed``."""
    parts = [f"{count} {end}" for end, count in report.counts.items()]
    return ", ".join(parts) or "nothing was gone through"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    seconds = f"{outcome.seconds:.2f}"
    key = outcome.key or outcome.recipe
    if is_terminal():
        key = key[:12]
    return (outcome.end, outcome.target, outcome.kernel, key, seconds, outcome.why)


def _row(root: str, dry_run: bool, report: WarmReport, given: GivenRecipes) -> dict[str, Any]:
    outcomes = []
    for one in report.outcomes:
        outcomes.append(
            {
                "recipe": one.recipe,
                "kernel": one.kernel,
                "target": one.target,
                "end": one.end,
                "key": one.key,
                "seconds": round(one.seconds, 3),
                "why": one.why,
            }
        )
    bad = [{"path": one.path, "line": one.number, "why": one.reason} for one in given.bad]
    return {
        "root": root,
        "dry_run": dry_run,
        "counts": report.counts,
        "left": report.left,
        "bad_lines": bad,
        "outcomes": outcomes,
    }
