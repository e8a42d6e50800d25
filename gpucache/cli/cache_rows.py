"""How the command line shows what is cached: rows for JSON, cells for tables. Reads entries, writes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpucache.units import ago, size

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Copy, Entry
    from gpucache.upkeep.clean import CleanPlan, OtherFile
    from gpucache.upkeep.prune import PrunePlan, PruneResult

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
    """The same for programs: the whole key, bytes, and the time in UTC."""
    cells = entry_cells(entry, now)
    return (entry.key, *cells[1:5], str(entry.physical_bytes), _utc(entry.used), cells[7])


def _utc(when: float) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    except (OverflowError, ValueError, OSError):  # a file system may say anything
        return "-"


def entry_whole(entry: Entry) -> dict[str, Any]:
    """An entry with its files and copies, and what Triton and the binary say of it."""
    path = entry.copies[0].path
    files = {file.name: file.size_bytes for file in entry.files}
    return {
        **entry_row(entry),
        "files": files,
        "copies": [
            {"path": copy.path, "kind": copy.kind, "directory": copy.directory}
            for copy in entry.copies
        ],
        "cubin": next((f"{path}/{name}" for name in files if name.endswith(".cubin")), None),
        **_compiled(path, f"{entry.kernel}.json" if entry.kind == "kernel" else None),
    }


def _compiled(path: str, group: str | None) -> dict[str, Any]:
    from gpucache.disk.reading import read
    from gpucache.kernels.cubin import resources
    from gpucache.kernels.metadata import Metadata

    try:
        said = Metadata.parse(read(f"{path}/{group}")) if group is not None else None
    except (OSError, ValueError):
        said = None
    if said is None:
        return {
            "registers": None,
            "stack_bytes": None,
            "shared_bytes": None,
            "warps": None,
            "options": None,
            "environment": None,
        }
    needs = (resources(f"{path}/{str(group).removesuffix('.json')}.cubin") or {}).get(said.name)
    return {
        "registers": None if needs is None else needs.registers,
        "stack_bytes": None if needs is None else needs.stack_bytes,
        "shared_bytes": said.shared_bytes,
        "warps": said.num_warps,
        "options": dict(said.options),
        "environment": dict(said.environment),
    }


def field_cells(whole: Mapping[str, Any], human: bool) -> list[tuple[str, str]]:
    """A line for each field of `entry_whole`; lists and tables take several."""
    show = size if human else str
    rows: list[tuple[str, str]] = []
    for name, value in whole.items():
        if name == "copies":
            rows += [(copy["kind"], copy["path"]) for copy in value]
        elif name == "files":
            rows += [
                ("file", f"{file} ({size(count)})" if human else f"{file} {count}")
                for file, count in value.items()
            ]
        elif name in ("options", "environment"):
            kind = name.removesuffix("s")
            rows += [(kind, f"{key}={_text(one)}") for key, one in (value or {}).items()]
        elif name.endswith("_bytes") and value is not None:
            rows.append((name, show(value)))
        elif name in ("created", "used"):
            rows.append((name, _utc(value)))
        else:
            rows.append((name, _text(" ".join(value) if isinstance(value, list) else value) or "-"))
    return rows


def _text(value: Any) -> str:
    """A JSON value for people: a text as it is, and no value as a dash."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def usage_rows(report: CacheReport, by: str) -> list[dict[str, Any]]:
    """What is taken by each bucket of the root, or by the entries of each device directory, architecture or kernel."""
    if by == "bucket":
        return [{name: getattr(part, name) for name in USAGE_COLUMNS} for part in report.usage]
    rows: dict[str, dict[str, Any]] = {}
    for entry in report.entries:
        counts = [_files(entry, copy) for copy in entry.copies]
        if by == "device":
            for copy, files in zip(entry.copies, counts, strict=True):
                _add(
                    rows, copy.directory or "store", files, copy.logical_bytes, copy.physical_bytes
                )
        else:
            name = (entry.arch if by == "arch" else entry.kernel) or "-"
            _add(rows, name, sum(counts), entry.logical_bytes, entry.physical_bytes)
    return sorted(rows.values(), key=lambda row: -int(row["physical_bytes"]))


def _files(entry: Entry, copy: Copy) -> int:
    """How many files a copy has: those of the first, and a group of its own in the view of a stored kernel."""
    return len(entry.files) + (copy.kind == "view" and entry.stored and entry.kind == "kernel")


def _add(rows: dict[str, dict[str, Any]], name: str, *counts: int) -> None:
    row = rows.setdefault(name, dict.fromkeys(USAGE_COLUMNS, 0) | {"name": name})
    for column, count in zip(USAGE_COLUMNS[1:], counts, strict=True):
        row[column] += count


def usage_cells(row: Mapping[str, Any], human: bool) -> tuple[str, ...]:
    """The cells of `USAGE_COLUMNS`."""
    show = size if human else str
    return (row["name"], str(row["files"]), show(row["logical_bytes"]), show(row["physical_bytes"]))


def plan_row(plan: PrunePlan | CleanPlan) -> dict[str, Any]:
    """A plan for JSON."""
    entries, files = _parts(plan)
    return {
        "root": entries.root,
        "entries": len(entries.remove),
        "slimmed": len(entries.slim),
        "strays": len(entries.strays),
        "files": len(files),
        "logical_bytes": plan.logical_bytes,
        "physical_bytes": plan.physical_bytes,
        "keys": [entry.key for entry in (*entries.remove, *entries.slim)],
        "kept": [{"key": skipped.key, "why": skipped.why} for skipped in entries.kept],
    }


def plan_cells(plan: PrunePlan | CleanPlan, human: bool) -> Iterator[tuple[str, ...]]:
    """The cells of `PLAN_COLUMNS`: rounded for people, else whole keys, bytes, and times in UTC."""
    from gpucache.upkeep.prune import slimmed_bytes

    entries, files = _parts(plan)
    now = time.time()
    show = size if human else str

    def when(used: float) -> str:
        return ago(now - used) if human else _utc(used)

    for what, some in (("remove", entries.remove), ("slim", entries.slim)):
        for entry in some:
            key = entry.key[:12] if human else entry.key
            count = entry.physical_bytes if what == "remove" else slimmed_bytes(entry)
            yield what, key, entry.kernel, show(count), when(entry.used)
    for stray in entries.strays:
        yield "sweep", stray.kind, stray.path, show(stray.size_bytes), when(stray.modified)
    for file in files:
        yield "remove", "inductor", file.path, show(file.size_bytes), when(file.used)


def _parts(plan: PrunePlan | CleanPlan) -> tuple[PrunePlan, tuple[OtherFile, ...]]:
    from gpucache.upkeep.clean import CleanPlan

    return (plan.entries, plan.files) if isinstance(plan, CleanPlan) else (plan, ())


def removal_row(done: PruneResult) -> dict[str, Any]:
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
