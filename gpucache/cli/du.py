"""The command `gpucache du`: what the caches take, of how much, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from gpucache.cli.cache_rows import Cells, Row
from gpucache.cli.common import command_settings, existing, scanned, tell_findings
from gpucache.cli.options import json_option, root_option
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_json, say
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucache.report.cache_report import CacheReport, Usage
    from gpucache.report.entries import Copy, Entry

By = Literal["bucket", "device", "arch", "kernel"]
"""What there is a row for."""
_FIELDS = ("name", "files", "logical_bytes", "physical_bytes")
_COLUMNS = (
    Column("name"),
    Column("files", weight=10, right=True),
    Column("logical", weight=20, right=True),
    Column("physical", right=True),
    Column("%", weight=30, right=True),
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
def du(by: By, root: str | None, as_json: bool) -> None:
    """Show what the caches take: logical bytes (hard links counted each time) and physical bytes (once).

    Each file counts once, in the first part that has it, so that the physical bytes add up; the store is looked at
    first. By device, architecture or kernel only entries are counted. Then: what the store may take, and what is free.

    \b
    gpucache du
    gpucache du --by kernel --json
    """
    report = scanned(existing(root))
    rows = usage_rows(report, by)
    everything: Row = {"name": "all"}
    for field in _FIELDS[1:]:
        everything[field] = sum(row[field] for row in rows)
    room = _room(report)
    if as_json:
        said = {"root": report.root, "by": by, "rows": rows, "all": everything}
        print_json({**said, **room._asdict()})
        return
    _print(rows, everything)
    if is_terminal() and rows:
        say(f"note: {room.words()}")
    tell_findings(report)


def _print(rows: Sequence[Row], everything: Row) -> None:
    """Print a row for each part, for people the largest first, and one for all."""
    human = is_terminal()
    whole = everything["physical_bytes"]
    if human:
        rows = sorted(rows, key=_physical_bytes, reverse=True)
    lines = [_cells(row, whole, human) for row in rows]
    total = _cells(everything, whole, human)
    if not human:
        lines.append(total)
    print_table(_COLUMNS, lines, total)


def _cells(row: Row, whole_bytes: int, human: bool) -> Cells:
    show = size if human else str
    logical = show(row["logical_bytes"])
    physical = show(row["physical_bytes"])
    share = 100 * row["physical_bytes"] / whole_bytes if whole_bytes else 0.0
    return row["name"], str(row["files"]), logical, physical, f"{share:.1f}"


# ---- the limit, and the file system


class _Room(NamedTuple):
    """What the store has of what it may have, and what the file system has left; None is unknown."""

    store_bytes: int
    """With what is in the quarantine, which the limit counts as well."""
    limit_bytes: int | None
    """0 is no limit."""
    free_bytes: int | None
    """For this user."""
    file_system_bytes: int | None

    def words(self) -> str:
        """For people: ``the store has 1.2 GiB of 50.0 GiB (2.4 %); 120.0 GiB of 900.0 GiB are free``."""
        store = f"the store has {size(self.store_bytes)}"
        if self.limit_bytes:
            share = 100 * self.store_bytes / self.limit_bytes
            store += f" of the {size(self.limit_bytes)} that it may have ({share:.1f} %)"
        elif self.limit_bytes == 0:
            store += " and no limit"
        if self.free_bytes is None or self.file_system_bytes is None:
            return store
        whole = size(self.file_system_bytes)
        return f"{store}; of its file system {size(self.free_bytes)} of {whole} are free"


def _room(report: CacheReport) -> _Room:
    """How much room there is for a root that has been looked at."""
    from gpucache.disk.fitness import statvfs
    from gpucache.store.limit import max_size_bytes

    taken = sum(one.physical_bytes for one in report.usage if one.name in ("store", "quarantine"))
    try:
        limit = max_size_bytes(report.root, command_settings())
        disk = statvfs(report.root)
    except OSError:  # the root is not there yet, or its file system does not answer
        return _Room(taken, None, None, None)
    if disk is None or not disk.f_blocks:
        return _Room(taken, limit, None, None)
    return _Room(taken, limit, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)


# ---- rows


def usage_rows(report: CacheReport, by: By) -> list[Row]:
    """What is taken by each bucket of the root, or by the entries of each device directory, architecture or kernel."""
    if by == "bucket":
        return [_bucket_row(bucket) for bucket in report.usage if not _is_unused(bucket)]
    rows: dict[str, Row] = {}
    for entry in report.entries:
        if by == "device":
            _add_copies(rows, entry)
        else:
            name = entry.arch if by == "arch" else entry.kernel
            _add_entry(rows, name or "-", entry)
    return sorted(rows.values(), key=_physical_bytes, reverse=True)


def _physical_bytes(row: Row) -> int:
    taken: int = row["physical_bytes"]
    return taken


def _is_unused(bucket: Usage) -> bool:
    """Whether a bucket is a JIT cache's that `run` has made a directory for, and nobody has used."""
    return bucket.name.startswith("jit/") and bucket.files == 0


def _bucket_row(bucket: Usage) -> Row:
    row = {}
    for name in _FIELDS:
        row[name] = getattr(bucket, name)
    return row


def _add_copies(rows: dict[str, Row], entry: Entry) -> None:
    """Add each copy of an entry to the row of the directory that has the copy."""
    for copy in entry.copies:
        row = _row_of(rows, copy.directory or "store")
        row["files"] += _files(entry, copy)
        row["logical_bytes"] += copy.logical_bytes
        row["physical_bytes"] += copy.physical_bytes


def _add_entry(rows: dict[str, Row], name: str, entry: Entry) -> None:
    """Add all copies of an entry to the row of this name."""
    row = _row_of(rows, name)
    for copy in entry.copies:
        row["files"] += _files(entry, copy)
    row["logical_bytes"] += entry.logical_bytes
    row["physical_bytes"] += entry.physical_bytes


def _row_of(rows: dict[str, Row], name: str) -> Row:
    """The row of this name, which is added to ``rows`` where it is new."""
    if name not in rows:
        rows[name] = {
            "name": name,
            "files": 0,
            "logical_bytes": 0,
            "physical_bytes": 0,
        }
    return rows[name]


def _files(entry: Entry, copy: Copy) -> int:
    """How many files a copy has: those of the entry, and in the view of a stored kernel a group file of its own."""
    files = len(entry.files)
    if copy.kind == "view" and entry.stored and entry.kind == "kernel":
        files += 1
        files -= entry.has_recipe  # the store's alone
    return files
