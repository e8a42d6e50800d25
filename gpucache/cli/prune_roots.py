"""What `gpucache prune` says and does where its roots are several: those of a pattern, or of other users."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import command_settings, counted, tell
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json_rows, say
from gpucache.layout.paths import absolute
from gpucache.units import size
from gpucache.upkeep.many_roots import Order, PrunedRoot, owner_of, prune_roots
from gpucache.upkeep.prune import PrunePolicy
from gpucache.upkeep.straight_way import is_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = (
    Column("root"),
    Column("owner", weight=30, right=True),
    Column("outcome"),
    Column("entries", weight=40, right=True),
    Column("strays", weight=10, right=True),
    Column("size", weight=50, right=True),
    Column("kept", weight=20, right=True),
)


def are_many(roots: Sequence[str]) -> bool:
    """Whether the roots of a command are a pattern's, several, or another user's whose rights root is to take over."""
    if len(roots) > 1 or any(map(_stands_for_many, roots)):
        return True
    if not roots or os.geteuid() != 0:
        return False
    owner = owner_of(absolute(roots[0]))
    return owner is not None and owner != 0


def _stands_for_many(root: str) -> bool:
    """Whether a root is a pattern, and not the name of a directory that happens to have such letters.

    For uid 0 a ``*`` and a ``?`` stand for any name all the same: with a directory of that name, a user could keep
    those of others from being pruned.
    """
    if not is_pattern(root):
        return False
    is_for_root = os.geteuid() == 0 and ("*" in root or "?" in root)
    return is_for_root or not os.path.lexists(root)


def prune_many(roots: Sequence[str], order: Order, yes: bool, as_json: bool) -> int:
    """Prune each root in a child of its own, and tell what came of each. The exit code is 1 if anything failed.

    Raises:
        UsageError: neither ``--yes`` nor ``--dry-run`` was said.
        ConfigurationError: the filters make no sense together.
    """
    if not (order.dry_run or yes):
        raise click.UsageError("of several roots nothing is shown first: say --yes, or --dry-run")
    if isinstance(order.policy, PrunePolicy):
        order.policy.check()
    patterns = [absolute(root) for root in roots]
    found = sorted(prune_roots(patterns, order, command_settings()), key=_by_path)
    if as_json:
        print_json_rows({"dry_run": order.dry_run}, "roots", list(map(_row, found)))
    else:
        print_table(_COLUMNS, list(map(_cells, found)))
        tell(list(_lines(found)))
        say(f"note: {_sum(found, order.dry_run)}")
    return 1 if any(one.is_failure for one in found) else 0


def _by_path(one: PrunedRoot) -> str:
    return one.root


def _row(one: PrunedRoot) -> dict[str, Any]:
    return {
        "root": one.root,
        "outcome": one.state,
        "uid": one.uid,
        "entries": one.entries,
        "slimmed": one.slimmed,
        "strays": one.strays,
        "units": one.units,
        "physical_bytes": one.physical_bytes,
        "kept": one.kept,
        "problem": one.problem,
        "hint": one.hint,
    }


def _cells(one: PrunedRoot) -> tuple[str, ...]:
    show = size if is_terminal() else str
    owner = "" if one.uid is None else str(one.uid)
    entries = one.entries + one.slimmed + one.units
    counts = (str(entries), str(one.strays), show(one.physical_bytes), str(one.kept))
    return (one.root, owner, one.state, *counts)


def _lines(found: Sequence[PrunedRoot]) -> Iterator[str]:
    """What is wrong with roots, each with its way out."""
    for one in found:
        if one.state == "no-match":
            yield f"note: no directory is like {one.root}"
        elif one.problem:
            level = "warning" if one.is_failure else "note"
            hint = f"; {one.hint}" if one.hint else ""
            yield f"{level}: {one.root}: {one.problem}{hint}"


def _sum(found: Sequence[PrunedRoot], dry_run: bool) -> str:
    """All of it in words: ``3 roots pruned, 1 failed; freed 1.2 GiB``."""
    done = sum(one.state in ("pruned", "planned") for one in found)
    failed = sum(one.is_failure for one in found)
    parts = [f"{counted(done, 'root', 'roots')} {'looked at' if dry_run else 'pruned'}"]
    if failed:
        parts.append(f"{failed} failed")
    freed = size(sum(one.physical_bytes for one in found))
    return f"{', '.join(parts)}; {freed} {'would go' if dry_run else 'freed'}"
