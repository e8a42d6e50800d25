"""How `ls` shows what is cached: rows for JSON, cells for tables.

A new column or field of these commands is made here. Entries are read, and nothing is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.kernels.description import Description
    from gpucache.report.entries import Copy, Entry

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
    return {**row, **_described_row(entry)}


def described(entry: Entry) -> Description | None:
    """What the files of an entry tell its kernel's author; None of what is no kernel, or cannot be read."""
    from gpucache.kernels.description import describe

    if entry.kind != "kernel":
        return None
    return describe(entry.copies[0].path, entry.kernel, with_function=False)


def _described_row(entry: Entry) -> Row:
    """The fields that `described` knows, for JSON: null what nobody knows, as of another kind of entry."""
    row: Row = dict.fromkeys(("constants", "dtypes", "set_options", *_NUMBERS))
    found = described(entry)
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


# ---- one entry whole


def entry_whole(entry: Entry) -> Row:
    """All that is known of an entry, for JSON: its files and copies too, and what its metadata and its binary say."""
    path = entry.copies[0].path
    files = {}
    for file in entry.files:
        files[file.name] = file.size_bytes
    cubins = [name for name in files if name.endswith(".cubin")]
    compiled = _NOT_COMPILED
    if entry.kind == "kernel":
        compiled = _compiled(f"{path}/{entry.kernel}")
    return {
        **entry_row(entry),
        "files": files,
        "copies": [_copy_row(copy) for copy in entry.copies],
        "cubin": f"{path}/{cubins[0]}" if cubins else None,
        **compiled,
    }


def _copy_row(copy: Copy) -> Row:
    return {
        "path": copy.path,
        "kind": copy.kind,
        "directory": copy.directory,
    }


_NOT_COMPILED: Row = {
    "registers": None,
    "stack_bytes": None,
    "shared_bytes": None,
    "warps": None,
    "options": None,
    "environment": None,
}


def _compiled(kernel: str) -> Row:
    """What a kernel's metadata and binary say of the kernel. ``kernel`` is the path of both files, without a suffix."""
    from gpucache.disk.reading import read
    from gpucache.kernels.cubin import resources
    from gpucache.kernels.metadata import Metadata

    try:
        said = Metadata.parse(read(f"{kernel}.json"))
    except (OSError, ValueError):
        return _NOT_COMPILED
    functions = resources(f"{kernel}.cubin") or {}
    needs = functions.get(said.name)
    return {
        "registers": needs.registers if needs is not None else None,
        "stack_bytes": needs.stack_bytes if needs is not None else None,
        "shared_bytes": said.shared_bytes,
        "warps": said.num_warps,
        "options": dict(said.options),
        "environment": dict(said.environment),
    }


def field_cells(whole: Row, human: bool) -> list[tuple[str, str]]:
    """A table of what `entry_whole` says: a line for each field, and one for each copy, file, option and variable."""
    lines: list[tuple[str, str]] = []
    for name, value in whole.items():
        lines += _field(name, value, human)
    return lines


def _field(name: str, value: Any, human: bool) -> Iterator[tuple[str, str]]:
    if name == "copies":
        for copy in value:
            yield copy["kind"], copy["path"]
    elif name == "files":
        for file, count in value.items():
            yield "file", _file(file, count, human)
    elif name in ("constants", "dtypes", "set_options", "options", "environment"):
        kind = name.removesuffix("s")
        for key, inner in (value or {}).items():
            yield kind, f"{key}={_text(inner)}"
    else:
        yield name, _value(name, value, human) or "-"


def _file(name: str, count: int, human: bool) -> str:
    return f"{name} ({size(count)})" if human else f"{name} {count}"


def _value(name: str, value: Any, human: bool) -> str:
    """The value of a field that takes one line."""
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return size(value) if human else str(value)
    if name in ("created", "used"):
        return utc(value)
    if isinstance(value, list):
        return " ".join(value)
    return _text(value)


def _text(value: Any) -> str:
    """A JSON value for people: a text as it is, and no value as a dash."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return json.dumps(value)
