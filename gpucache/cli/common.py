"""What several commands do: find, vet and scan a root, find one entry in the root, and tell of what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpucache.cli.terminal import progress, say
from gpucache.errors import ConfigurationError, GpuCacheError, NoEntryError
from gpucache.layout.paths import ours, resolve_root

if TYPE_CHECKING:
    from gpucache.findings import Finding
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry

_MOST_LINES = 10


def existing(root: str | None) -> str:
    """The absolute path of the root that a command is about. Where nothing is there, a note says so."""
    where = resolve_root(root, os.environ)
    if not os.path.lexists(where):
        say(f"note: there is no {where}")
    return where


def vetted(root: str | None) -> str:
    """The root as `existing` gives it, for a command that deletes or writes. Refuses what others may have planted.

    Raises:
        UnsafeDirectoryError: somebody else could have planted what is in the root.
        ConfigurationError: the path is a device directory, whose locks and store are those of the root above it.
    """
    from gpucache.disk.vetting import Trust, vet, vet_child
    from gpucache.layout.paths import our_directories

    where = existing(root)
    trust = Trust.parse(os.environ)
    vet(where, trust)
    for path in our_directories(where):
        vet_child(path, trust)
    _refuse_device_directory(where)
    return where


def _refuse_device_directory(root: str) -> None:
    path = os.path.realpath(root)
    parent, name = os.path.split(path)
    whole = os.path.dirname(parent)
    is_below_triton = os.path.basename(parent) == "triton"
    if is_below_triton and os.path.isdir(ours(whole)):
        expected = f"a root, but the directory of device {name} in {whole}"
        raise ConfigurationError("--root", root, expected)


def scanned(root: str) -> CacheReport:
    """The report of what is in the root; while the root is read, a bar on a terminal shows how far that is."""
    from gpucache.report.cache_report import scan

    fold_counters(root)
    with progress("looking") as show:
        return scan(root, show)


def fold_counters(root: str) -> None:
    """Fold the counters that ended processes have left, as each command does that comes by; tells nothing."""
    from gpucache.disk.vetting import Trust, vet, vet_child
    from gpucache.layout.paths import our_directories
    from gpucache.store.counter_fold import fold

    try:
        trust = Trust.parse(os.environ)
        vet(root, trust)
        for path in our_directories(root):
            vet_child(path, trust)
        fold(root)
    except (GpuCacheError, OSError):
        return  # a root that others may write, or that is read-only: the counters are summed where they lie


def one_entry(root: str, key: str) -> Entry:
    """The entry whose key is ``key``, or alone begins with ``key``.

    Raises:
        NoEntryError: there is no such entry, or more than one.
    """
    from gpucache.report.find import find_entries

    with progress("looking") as show:
        found = find_entries(root, key, show)
    if len(found) != 1:
        keys = tuple(entry.key for entry in found)
        raise NoEntryError(os.path.realpath(root), key, keys)
    return found[0]


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun: ``1 entry``, ``3 entries``."""
    return f"{count} {one if count == 1 else many}"


def finding_rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """The fields of each finding by name, for JSON."""
    return [finding.as_json() for finding in findings]


def tell_findings(report: CacheReport) -> None:
    """Warn of what is wrong in the root, for a command that has looked at the root for another reason."""
    lines = []
    for finding in report.findings:
        lines.append(f"warning: {finding.subject}: {finding.fact}; {finding.fix}")
    tell(lines)


def tell(lines: Sequence[str]) -> None:
    """Say the first ten lines, and how many more there are."""
    for line in lines[:_MOST_LINES]:
        say(line)
    more = len(lines) - _MOST_LINES
    if more > 0:
        say(f"note: and {more} more such; --json names each")
