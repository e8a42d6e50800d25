"""`Page`: what the page of a cache shows, as one value: totals, sums, findings, and a row for each large entry.

Everything is text or a number already, and what must not leave the machine is left out here: the page's template shows
what a `Page` has, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.findings import Finding
    from gpucache.kernels.description import Description
    from gpucache.report.cache_report import CacheReport, Usage
    from gpucache.report.entries import Entry

    Describe = Callable[[Entry], Description | None]

MOST_ROWS = 5000
"""Of more entries the largest are listed one by one: a browser sorts so many while one looks."""
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows in one place, and by what number the place is sorted; None sorts by the text."""

    text: str
    number: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The heads of columns, and rows with a cell for each."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class GroupedFinding:
    """All findings of one code."""

    code: str
    level: str
    count: int
    examples: tuple[str, ...]
    """Three at most; none on a page that tells no paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page shows."""

    root: str | None
    """None on a page that tells no paths."""
    host: str | None
    made: str
    """When the cache was looked at, in UTC."""
    totals: tuple[tuple[str, str], ...]
    usage: Table
    """The same rows and sums as those of `gpucache du`."""
    by_kernel: Mapping[str, Mapping[str, int]]
    """Physical bytes by kernel, and of each by architecture; the largest first."""
    findings: tuple[GroupedFinding, ...]
    entries: Table
    unlisted: int
    """How many entries have no row, since others are larger."""
    redacted: bool


def page_of(
    report: CacheReport,
    findings: Sequence[Finding],
    describe: Describe,
    *,
    host: str,
    redact: bool = False,
    now: float | None = None,
) -> Page:
    """What the page of a report shows.

    ``describe`` reads the facts of one entry, and is asked for those that get a row only. With ``redact`` the page
    tells no path, no name of a host and no value of a kernel's constants; names of kernels stay.
    """
    now = time.time() if now is None else now
    largest = sorted(report.entries, key=_physical_bytes, reverse=True)
    listed = largest[:MOST_ROWS]
    return Page(
        root=None if redact else report.root,
        host=None if redact else host,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        totals=_totals(report),
        usage=_usage(report.usage, redact),
        by_kernel=bytes_by_kernel(largest),
        findings=_grouped(findings, redact),
        entries=_entries(listed, describe, now, redact),
        unlisted=len(largest) - len(listed),
        redacted=redact,
    )


def _physical_bytes(entry: Entry) -> int:
    return entry.physical_bytes


# ---- sums


def _totals(report: CacheReport) -> tuple[tuple[str, str], ...]:
    kernels = {entry.kernel for entry in report.entries if entry.kind == "kernel"}
    archs = {entry.arch for entry in report.entries if entry.arch is not None}
    logical = sum(usage.logical_bytes for usage in report.usage)
    physical = sum(usage.physical_bytes for usage in report.usage)
    return (
        ("entries", str(len(report.entries))),
        ("kernels", str(len(kernels))),
        ("architectures", ", ".join(sorted(archs)) or "-"),
        ("on disk", size(physical)),
        ("without sharing", size(logical)),
    )


_USAGE_COLUMNS = ("part", "files", "logical bytes", "physical bytes")


def _usage(parts: Iterable[Usage], redact: bool) -> Table:
    rows = []
    files = logical = physical = 0
    for part in parts:
        name = _place(part.name, redact)
        rows.append((Cell(name), *_numbers(part.files, part.logical_bytes, part.physical_bytes)))
        files += part.files
        logical += part.logical_bytes
        physical += part.physical_bytes
    rows.append((Cell("all"), *_numbers(files, logical, physical)))
    return Table(_USAGE_COLUMNS, tuple(rows))


def _numbers(*numbers: int) -> tuple[Cell, ...]:
    return tuple(Cell(f"{number:,}", number) for number in numbers)


def _place(name: str, redact: bool) -> str:
    """The name of a part of the root, or of a device directory; what lies outside the root is named by its path."""
    if redact and name.startswith("/"):
        return "a directory outside the root"
    return name


def bytes_by_kernel(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Physical bytes by kernel and architecture; the kernel that takes most comes first."""
    sums: dict[str, dict[str, int]] = {}
    for entry in entries:
        of_kernel = sums.setdefault(entry.kernel, {})
        arch = entry.arch or UNKNOWN
        of_kernel[arch] = of_kernel.get(arch, 0) + entry.physical_bytes
    largest = sorted(sums.items(), key=_sum_of, reverse=True)
    return dict(largest)


def _sum_of(item: tuple[str, Mapping[str, int]]) -> int:
    return sum(item[1].values())


# ---- findings

_MOST_EXAMPLES = 3


def _grouped(findings: Iterable[Finding], redact: bool) -> tuple[GroupedFinding, ...]:
    """The findings by code, errors first."""
    by_code: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_code.setdefault((finding.level, finding.code), []).append(finding)
    grouped = []
    for (level, code), found in sorted(by_code.items()):
        examples = []
        for finding in found[:_MOST_EXAMPLES]:
            examples.append(f"{finding.subject}: {finding.fact}; {finding.fix}")
        shown = () if redact else tuple(examples)
        grouped.append(GroupedFinding(code, level, len(found), shown))
    return tuple(grouped)


# ---- the author's table

_COLUMNS = (
    *("key", "kernel", "kind", "arch", "triton", "warps", "stages", "registers", "spills"),
    *("shared", "size", "used", "directories", "constants", "dtypes"),
)


def _entries(listed: Iterable[Entry], describe: Describe, now: float, redact: bool) -> Table:
    columns = [name for name in _COLUMNS if not (redact and name == "constants")]
    rows = []
    for entry in listed:
        cells = _cells(entry, describe(entry), now, redact)
        rows.append(tuple(cells[column] for column in columns))
    return Table(tuple(columns), tuple(rows))


def _cells(
    entry: Entry, described: Description | None, now: float, redact: bool
) -> dict[str, Cell]:
    """The cell of each column by its name."""
    directories = [_place(name, redact) for name in entry.directories]
    return {
        "key": Cell(entry.key[:12]),
        "kernel": Cell(entry.kernel),
        "kind": Cell(entry.kind),
        "arch": Cell(entry.arch or "-"),
        "triton": Cell(entry.triton_version or "-"),
        "size": Cell(size(entry.physical_bytes), entry.physical_bytes),
        "used": _age(now - entry.used),
        "directories": Cell(" ".join(directories) or "-"),
        **_described(described),
    }


def _age(age_s: float) -> Cell:
    days = max(age_s, 0) / 86400
    return Cell(f"{days:.1f} d ago", age_s)


def _described(described: Description | None) -> dict[str, Cell]:
    if described is None:
        names = ("constants", "dtypes", "warps", "stages", "registers", "spills", "shared")
        return dict.fromkeys(names, Cell("-", -1))
    return {
        "constants": Cell(_pairs(described.constants)),
        "dtypes": Cell(" ".join(described.dtypes.values()) or "-"),
        "warps": _number(described.warps),
        "stages": _number(described.stages),
        "registers": _number(described.registers),
        "spills": _bytes(described.spills),
        "shared": _bytes(described.shared_bytes),
    }


def _pairs(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "-"


def _number(number: int | None) -> Cell:
    return Cell("-", -1) if number is None else Cell(str(number), number)


def _bytes(number: int | None) -> Cell:
    return Cell("-", -1) if number is None else Cell(size(number), number)
