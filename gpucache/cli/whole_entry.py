"""How `ls KEY` shows one entry: all fields for JSON and for the next program; for people what they ask, and its files.

Entries are read, and nothing is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpucache.cli import tuning_table
from gpucache.cli.cache_rows import Row, described, entry_fields, utc
from gpucache.cli.entry_rows import ranges
from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import is_terminal, print_data, print_json, say
from gpucache.escapes import printable
from gpucache.units import ago, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.kernels.description import Description
    from gpucache.kernels.metadata import Metadata
    from gpucache.report.entries import Copy, Entry

_FIELDS = (Column("field"), Column("value", whole=False))
_MAPPINGS = ("constants", "dtypes", "set_options", "options", "environment", "paths")
"""Fields whose items have a line each when piped."""


def print_whole(entry: Entry, as_json: bool) -> None:
    """Print all that is known of an entry.

    Raises:
        OutputError: stdout cannot be written.
    """
    whole = entry_whole(entry)
    if as_json:
        print_json(whole)
    elif is_terminal():
        _print_for_people(entry, whole)
    else:
        print_table(_FIELDS, field_cells(whole))


# ---- all fields


def entry_whole(entry: Entry) -> Row:
    """All that is known of an entry, for JSON: its files and copies too, and what its metadata and its binary say."""
    from gpucache.report.artefacts import artefacts

    description = described(entry, with_function=True)
    row = entry_fields(entry, description)
    paths = artefacts(entry)
    said = _metadata(entry)
    return {
        **row,
        "files": {file.name: file.size_bytes for file in entry.files},
        "copies": [_copy_row(copy) for copy in entry.copies],
        "cubin": paths.get("cubin"),
        "stack_bytes": row["spills"],
        "options": None if said is None else dict(said.options),
        "environment": None if said is None else dict(said.environment),
        "paths": paths,
        "function": _function(description),
        "tuning": tuning_table.tuning_row(entry),
    }


def _metadata(entry: Entry) -> Metadata | None:
    """The metadata of a kernel; None of another kind of entry."""
    from gpucache.kernels.metadata import metadata_at

    if entry.kind != "kernel":
        return None
    return metadata_at(f"{entry.copies[0].path}/{entry.kernel}.json")


def _copy_row(copy: Copy) -> Row:
    return {
        "path": copy.path,
        "kind": copy.kind,
        "directory": copy.directory,
    }


def _function(description: Description | None) -> Row | None:
    """Where the kernel's function stands; None where nothing tells."""
    source = None if description is None else description.function
    if source is None:
        return None
    return {
        "module": source.module,
        "qualname": source.qualname,
        "file": source.file,
        "line": source.line,
    }


def field_cells(whole: Row) -> list[tuple[str, str]]:
    """What `entry_whole` says for the next program: a line for each field, copy, file, path, option and variable."""
    lines: list[tuple[str, str]] = []
    for name, value in whole.items():
        lines += _field(name, value)
    return lines


def _field(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name == "copies":
        for copy in value:
            yield copy["kind"], copy["path"]
    elif name == "files":
        for file, count in value.items():
            yield "file", f"{file} {count}"
    elif name == "tuning":
        yield from tuning_table.field_cells(value)
    elif name == "function":
        yield name, _place(value) or "-"
    elif name in _MAPPINGS:
        kind = name.removesuffix("s")
        for key, inner in (value or {}).items():
            yield kind, f"{key}={_text(inner)}"
    else:
        yield name, _value(name, value) or "-"


def _value(name: str, value: Any) -> str:
    """The value of a field that takes one line."""
    if value is not None and name in ("created", "used"):
        return utc(value)
    if isinstance(value, list):
        return " ".join(value)
    return _text(value)


def _text(value: Any) -> str:
    """A JSON value as a text: a text as it is, and no value as a dash."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _place(function: Row | None) -> str:
    """Where a function stands, in one word or two."""
    if function is None:
        return ""
    names = [name for name in (function["module"], function["qualname"]) if name]
    place = ""
    if function["file"] is not None:
        place = " " + function["file"]
        if function["line"] is not None:
            place += f":{function['line']}"
    return ".".join(names) + place


# ---- for people


def _print_for_people(entry: Entry, whole: Row) -> None:
    """Print what a kernel's author asks, then a line for each file, whose path can be copied, however long it is."""
    rows = [(name, value) for name, value in _told(entry, whole) if value]
    print_table(_FIELDS, rows)
    result = tuning_table.tuning_of(entry)
    if result is not None:
        print_data("")
        tuning_table.print_tuning(result)
    print_data("")
    sizes = {f"{entry.copies[0].path}/{name}": count for name, count in whole["files"].items()}
    widest = max((len(printable(form)) for form in whole["paths"]), default=0)
    for form, path in whole["paths"].items():
        print_data(f"{printable(form):{widest}}  {size(sizes[path]):>10}  {printable(path)}")
    if entry.kind == "kernel":
        key = entry.key[:12]
        say(f"note: `gpucache cat {key} ptx` prints a file, sass too; --json has all options")


def _told(entry: Entry, whole: Row) -> Iterator[tuple[str, str]]:
    """The fields that people see, by name; those that are empty are left out."""
    now = time.time()
    yield "kernel", entry.kernel
    yield "key", entry.key
    yield "kind", entry.kind
    yield "arch", entry.arch or ""
    yield "triton", entry.triton_version or ""
    yield "function", _place(whole["function"])
    for name, field in _NAMES.items():
        yield name, _items(whole[field])
    yield from _needs(whole)
    yield "size", _sizes(entry)
    yield "created", ago(now - entry.created)
    yield "used", ago(now - entry.used)
    yield "directories", ranges(entry.directories)
    for copy in entry.copies:
        yield copy.kind, copy.path


_NAMES = {
    "constants": "constants",
    "types": "dtypes",
    "options": "set_options",
    "variables": "environment",
}


def _items(values: Mapping[str, Any] | None) -> str:
    """Names and values on one line, of values that have blanks too."""
    if not values:
        return ""
    return "  ".join(f"{name}={_text(value)}" for name, value in values.items())


def _needs(whole: Row) -> Iterator[tuple[str, str]]:
    """What a kernel needs of the device."""
    if whole["warps"] is not None:
        yield "warps", f"{whole['warps']}, stages {_text(whole['stages'])}"
    if whole["registers"] is not None:
        spills = size(whole["stack_bytes"])
        yield "registers", f"{whole['registers']} a thread, spilled {spills}"
    if whole["shared_bytes"] is not None:
        yield "shared memory", f"{size(whole['shared_bytes'])} a block"


def _sizes(entry: Entry) -> str:
    taken = size(entry.physical_bytes)
    if entry.held_bytes:
        taken += f", of which {size(entry.held_bytes)} are linked elsewhere too"
    return f"{taken} (with each hard link {size(entry.logical_bytes)})"
