"""What several commands do: resolve, vet and scan a root, find one entry in it, and tell of what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpucache.cli.terminal import progress, say
from gpucache.errors import ConfigurationError, NoEntryError
from gpucache.layout.paths import ours, resolve_root

if TYPE_CHECKING:
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry

_MOST_LINES = 10


def existing(root: str | None) -> str:
    """The root that a command is about; where there is nothing, a note says so."""
    where = resolve_root(root, os.environ)
    if not os.path.lexists(where):
        say(f"note: there is no {where}")
    return where


def vetted(root: str | None) -> str:
    """As `existing`, for a command that deletes or writes: not where somebody else could have planted what is there.

    Raises:
        UnsafeDirectoryError: somebody else could.
        ConfigurationError: it is a device directory, whose locks and store are those of the root that it belongs to.
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
    parent, name = os.path.split(os.path.realpath(root))
    whole = os.path.dirname(parent)
    if os.path.basename(parent) == "triton" and os.path.isdir(ours(whole)):
        expected = f"a root, but the directory of device {name} in {whole}"
        raise ConfigurationError("--root", root, expected)


def scanned(root: str) -> CacheReport:
    """What is in the root, looked at with a bar that shows how far."""
    from gpucache.report.cache_report import scan

    with progress("looking") as show:
        return scan(root, show)


def one_entry(root: str, key: str) -> Entry:
    """The entry of a key, or of what only one key begins with.

    Raises:
        NoEntryError: there is none, or more than one.
    """
    from gpucache.report.find import find_entries

    with progress("looking") as show:
        found = find_entries(root, key, show)
    if len(found) != 1:
        raise NoEntryError(os.path.realpath(root), key, tuple(entry.key for entry in found))
    return found[0]


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun: ``1 entry``, ``3 entries``."""
    return f"{count} {one if count == 1 else many}"


def tell_findings(report: CacheReport) -> None:
    """Warn of what is wrong in a root that a command was about for another reason."""
    lines = []
    for finding in report.findings:
        lines.append(f"warning: {finding.subject}: {finding.fact}; {finding.fix}")
    tell(lines)


def tell(lines: Sequence[str]) -> None:
    """Say the first of many lines, and how many more there are."""
    for line in lines[:_MOST_LINES]:
        say(line)
    more = len(lines) - _MOST_LINES
    if more > 0:
        say(f"note: and {more} more such; --json names each")
