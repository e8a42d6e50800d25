"""What `ls` says of an entry in JSON, and what commands that show entries read of one.

A new field of its JSON is made here, a new column in `entry_rows`. Entries are read, and nothing is written.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpucache.kernels.description import Description
    from gpucache.report.entries import Entry

Row = dict[str, Any]
"""One thing for JSON: its fields by name."""
Cells = tuple[str, ...]
"""One thing for a table: a text for each column."""

_SHOWN = (
    "key",
    "kind",
    "kernel",
    "target",
    "arch",
    "triton_version",
    "logical_bytes",
    "physical_bytes",
    "held_bytes",
)
_NUMBERS = ("warps", "stages", "registers", "spills", "shared_bytes")


# ---- entries


def entry_row(entry: Entry) -> Row:
    """The fields of an entry for JSON; of its files only the number."""
    return entry_fields(entry, described(entry))


def entry_fields(entry: Entry, description: Description | None) -> Row:
    """As `entry_row`, of an entry whose description has been read."""
    row: Row = {}
    for name in _SHOWN:
        row[name] = getattr(entry, name)
    row["files"] = len(entry.files)
    row["created"] = entry.created
    row["used"] = entry.used
    row["stored"] = entry.stored
    row["recipe"] = entry.has_recipe
    row["directories"] = list(entry.directories)
    row["uid"] = owner_of(entry)
    return {**row, **_described_row(description)}


def described(entry: Entry, with_function: bool = False) -> Description | None:
    """What the files of an entry tell its kernel's author; None of what is no kernel, or cannot be read.

    Where its function stands only ``with_function``, which costs a file more.
    """
    from gpucache.kernels.description import describe

    if entry.kind != "kernel":
        return None
    return describe(entry.copies[0].path, entry.kernel, with_function)


def _described_row(found: Description | None) -> Row:
    """The fields that a description has, for JSON: null what nobody knows, as of another kind of entry."""
    row: Row = dict.fromkeys(("constants", "dtypes", "set_options", *_NUMBERS))
    if found is None:
        return row
    for name in _NUMBERS:
        row[name] = getattr(found, name)
    if found.has_recipe:
        row["constants"] = dict(found.constants)
        row["dtypes"] = dict(found.dtypes)
        row["set_options"] = dict(found.options)
    return row


def owner_of(entry: Entry) -> int | None:
    """The uid of whoever has made the entry; None where the entry is gone."""
    try:
        return os.lstat(entry.copies[0].path).st_uid
    except OSError:
        return None


def utc(when: float) -> str:
    """A time as ISO 8601 has it; a dash for one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    except (OverflowError, ValueError, OSError):  # a file system may say anything
        return "-"
