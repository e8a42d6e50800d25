"""How the command line shows what is cached: rows for JSON, cells for tables. Reads entries, writes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from gpucache.units import ago, size

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Copy, Entry
    from gpucache.upkeep.execution import Outcome
    from gpucache.upkeep.plan import Plan

By = Literal["bucket", "device", "arch", "kernel"]
"""What `gpucache du` has a row for."""

ENTRY_COLUMNS = ("key", "kernel", "arch", "triton", "files", "size", "used", "directories")
USAGE_COLUMNS = ("name", "files", "logical_bytes", "physical_bytes")
PLAN_COLUMNS = ("what", "which", "name", "size", "used")

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


def entry_row(entry: Entry) -> dict[str, Any]:
    """An entry for JSON, without its files."""
    row: dict[str, Any] = {name: getattr(entry, name) for name in _SHOWN}
    return {
        **row,
        "files": len(entry.files),
        "created": entry.created,
        "used": entry.used,
        "stored": entry.stored,
        "directories": list(entry.directories),
    }


def entry_cells(entry: Entry, now: float) -> tuple[str, ...]:
    """The cells of `ENTRY_COLUMNS` for people: a key that is long enough to be told apart, and rounded figures."""
    return (
        entry.key[:12],
        entry.kernel,
        entry.arch or "-",
        entry.triton_version or "-",
        str(len(entry.files)),
        size(entry.physical_bytes),
        ago(now - entry.used),
        " ".join(entry.directories) or "-",
    )


def entry_fields(entry: Entry, now: float) -> tuple[str, ...]:
    """As `entry_cells`, for programs: the whole key, bytes, and the time in UTC."""
    _, kernel, arch, triton, files, _, _, directories = entry_cells(entry, now)
    used = _utc(entry.used)
    return entry.key, kernel, arch, triton, files, str(entry.physical_bytes), used, directories


def _utc(when: float) -> str:
    """A time as ISO 8601 has it; a dash for one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    except (OverflowError, ValueError, OSError):  # a file system may say anything
        return "-"


def entry_whole(entry: Entry) -> dict[str, Any]:
    """An entry with its files and copies, and what Triton and the binary say of it."""
    path = entry.copies[0].path
    files = {file.name: file.size_bytes for file in entry.files}
    copies = []
    for copy in entry.copies:
        copies.append({"path": copy.path, "kind": copy.kind, "directory": copy.directory})
    cubins = [f"{path}/{name}" for name in files if name.endswith(".cubin")]
    compiled = _compiled(f"{path}/{entry.kernel}") if entry.kind == "kernel" else _NOT_COMPILED
    return {
        **entry_row(entry),
        "files": files,
        "copies": copies,
        "cubin": cubins[0] if cubins else None,
        **compiled,
    }


_NOT_COMPILED = {
    "registers": None,
    "stack_bytes": None,
    "shared_bytes": None,
    "warps": None,
    "options": None,
    "environment": None,
}


def _compiled(kernel: str) -> Mapping[str, Any]:
    """What a kernel's metadata and binary say of it; ``kernel`` is the path of either without the suffix."""
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


def field_cells(whole: Mapping[str, Any], human: bool) -> list[tuple[str, str]]:
    """A line for each field of `entry_whole`; lists and tables take several."""
    rows: list[tuple[str, str]] = []
    for name, value in whole.items():
        rows += _field(name, value, human)
    return rows


def _field(name: str, value: Any, human: bool) -> list[tuple[str, str]]:
    if name == "copies":
        return [(copy["kind"], copy["path"]) for copy in value]
    if name == "files":
        return [("file", _file(file, count, human)) for file, count in value.items()]
    if name in ("options", "environment"):
        kind = name.removesuffix("s")
        return [(kind, f"{key}={_text(inner)}") for key, inner in (value or {}).items()]
    if name.endswith("_bytes") and value is not None:
        return [(name, size(value) if human else str(value))]
    if name in ("created", "used"):
        return [(name, _utc(value))]
    if isinstance(value, list):
        value = " ".join(value)
    return [(name, _text(value) or "-")]


def _file(name: str, count: int, human: bool) -> str:
    return f"{name} ({size(count)})" if human else f"{name} {count}"


def _text(value: Any) -> str:
    """A JSON value for people: a text as it is, and no value as a dash."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def usage_rows(report: CacheReport, by: By) -> list[dict[str, Any]]:
    """What is taken by each bucket of the root, or by the entries of each device directory, architecture or kernel."""
    if by == "bucket":
        return [{name: getattr(part, name) for name in USAGE_COLUMNS} for part in report.usage]
    rows: dict[str, dict[str, Any]] = {}
    for entry in report.entries:
        if by == "device":
            for copy in entry.copies:
                where = copy.directory or "store"
                _add(rows, where, _files(entry, copy), copy.logical_bytes, copy.physical_bytes)
        else:
            name = entry.arch if by == "arch" else entry.kernel
            files = sum(_files(entry, copy) for copy in entry.copies)
            _add(rows, name or "-", files, entry.logical_bytes, entry.physical_bytes)
    return sorted(rows.values(), key=lambda row: -int(row["physical_bytes"]))


def _files(entry: Entry, copy: Copy) -> int:
    """How many files a copy has: those of the first, and a group of its own in the view of a stored kernel."""
    has_own_group = copy.kind == "view" and entry.stored and entry.kind == "kernel"
    return len(entry.files) + (1 if has_own_group else 0)


def _add(
    rows: dict[str, dict[str, Any]], name: str, files: int, logical: int, physical: int
) -> None:
    """Add to the row of this name, which may be new."""
    empty = {"name": name, "files": 0, "logical_bytes": 0, "physical_bytes": 0}
    row = rows.setdefault(name, empty)
    row["files"] += files
    row["logical_bytes"] += logical
    row["physical_bytes"] += physical


def usage_cells(row: Mapping[str, Any], human: bool) -> tuple[str, ...]:
    """The cells of `USAGE_COLUMNS`."""
    show = size if human else str
    return (row["name"], str(row["files"]), show(row["logical_bytes"]), show(row["physical_bytes"]))


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan for JSON."""
    return {
        "root": plan.root,
        "entries": len(plan.removing),
        "slimmed": len(plan.slimming),
        "strays": len(plan.strays),
        "files": len(plan.files),
        "logical_bytes": plan.logical_bytes,
        "physical_bytes": plan.physical_bytes,
        "keys": [entry.key for entry in (*plan.removing, *plan.slimming)],
        "kept": [{"key": skipped.key, "why": skipped.why} for skipped in plan.kept],
    }


def plan_cells(plan: Plan, human: bool) -> Iterator[tuple[str, ...]]:
    """The cells of `PLAN_COLUMNS`: rounded for people, else whole keys, bytes, and times in UTC."""
    from gpucache.upkeep.slim import slimmed_bytes

    now = time.time()
    show = size if human else str

    def when(used: float) -> str:
        return ago(now - used) if human else _utc(used)

    for entry in plan.removing:
        key = entry.key[:12] if human else entry.key
        yield "remove", key, entry.kernel, show(entry.physical_bytes), when(entry.used)
    for entry in plan.slimming:
        key = entry.key[:12] if human else entry.key
        yield "slim", key, entry.kernel, show(slimmed_bytes(entry)), when(entry.used)
    for stray in plan.strays:
        yield "sweep", stray.kind, stray.path, show(stray.size_bytes), when(stray.modified)
    for file in plan.files:
        yield "remove", "inductor", file.path, show(file.size_bytes), when(file.used)


def removal_row(done: Outcome) -> dict[str, Any]:
    """What was done, for JSON."""
    return {
        "entries": done.entries,
        "slimmed": done.slimmed,
        "strays": done.strays,
        "files": done.freed.files,
        "logical_bytes": done.freed.logical_bytes,
        "physical_bytes": done.freed.physical_bytes,
        "skipped": [{"key": skipped.key, "why": skipped.why} for skipped in done.skipped],
    }
