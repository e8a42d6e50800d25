"""What several commands do: find, vet and scan a root, find one entry in the root, and tell of what was found."""

from __future__ import annotations

import fnmatch
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from gpucache.cli.settings import settings_of
from gpucache.cli.terminal import progress, say
from gpucache.configuration import in_force
from gpucache.environment import ROOT
from gpucache.errors import GpuCacheError, NoEntryError, NoRootError, NotCachedError
from gpucache.layout.paths import resolve_root
from gpucache.near import nearest_first

if TYPE_CHECKING:
    from gpucache.findings import Finding
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry
    from gpucache.store.last_findings import Command

_MOST_LINES = 10
_EXAMPLES = 3


def command_settings() -> Mapping[str, str]:
    """The settings of the command that click has called, for the root that its option ``--root`` names."""
    context = click.get_current_context(silent=True)
    root = None if context is None else context.params.get("root")
    return settings_of(root)


def naming(root: str | None) -> str | None:
    """What names the root of a command, whose option ``--root`` has this value; None for torch's directory."""
    if root:
        return "--root"
    found = in_force()
    if not ROOT.text(found.environ):
        return None
    origin = found.origins.get(ROOT.name)
    return ROOT.name if origin is None else str(origin)


def existing(root: str | None) -> str:
    """The absolute path of the root that a command is about.

    Of a root that nobody named, and that was not made yet, a note says so; so does one of an empty root.

    Raises:
        NoRootError: a root that was named is not there, or the root is no directory or no cache.
        ProvisionError: the operating system lets nobody look.
    """
    from gpucache.disk.root import check_cache, is_empty

    where = resolve_root(root, command_settings())
    named = naming(root)
    try:
        check_cache(where, named)
        if is_empty(where):
            say(f"note: {where} is empty: nothing was provisioned or cached there")
    except NoRootError as error:
        if named or error.reason != "missing":
            raise
        say(f"note: there is no {where} yet: `gpucache provision` makes it")
    return where


def vetted(root: str | None) -> str:
    """The root as `existing` gives it, for a command that deletes or writes. Refuses what others may have planted.

    Raises:
        NoRootError, ProvisionError: as `existing`; and the path is a device directory, whose locks and store are those
            of the root above it.
        UnsafeDirectoryError: somebody else could have planted what is in the root.
    """
    from gpucache.disk.root import refuse_device_directory

    where = existing(root)
    _vet_whole(where)
    refuse_device_directory(where, naming(root))
    return where


def scanned(root: str) -> CacheReport:
    """The report of what is in the root; while the root is read, a bar on a terminal shows how far that is."""
    from gpucache.report.cache_report import scan

    fold_counters(root)
    with progress("looking") as show:
        return scan(root, show, may_be_missing=True)  # `existing` has told


def fold_counters(root: str) -> None:
    """Fold the counters that ended processes have left, and remove their fresh roots; tells nothing."""
    from gpucache.store.counter_fold import fold
    from gpucache.upkeep.fresh_runs import sweep

    try:
        _vet_whole(root)
        fold(root)
        sweep(root)
    except (GpuCacheError, OSError):
        return  # a root that others may write, or that is read-only: the counters are summed where they lie


def remember_findings(root: str, command: Command, findings: Iterable[Finding]) -> None:
    """Keep for `gpucache metrics` how many findings of each code there were; in a root that may be written only."""
    from gpucache.store.last_findings import note_findings

    try:
        _vet_whole(root)
    except (GpuCacheError, OSError):
        return
    note_findings(root, command, findings)


def _vet_whole(root: str) -> None:
    """Refuse a root that others may have planted, or one of gpucache's directories in it.

    Raises:
        GpuCacheError: it is not safe, or nobody may look.
    """
    from gpucache.disk.vetting import Trust, vet, vet_child
    from gpucache.layout.paths import our_directories

    trust = Trust.parse(command_settings()).in_root(root)
    vet(root, trust)
    for path in our_directories(root):
        vet_child(path, trust)


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
        real = os.path.realpath(root)
        raise NoEntryError(real, key, keys, is_kernel=not keys and _is_kernel(real, key))
    return found[0]


_LOOKED_S = 1.0


def _is_kernel(root: str, name: str) -> bool:
    """Whether the store has a kernel of this name, as far as one second tells."""
    from gpucache.store.of_kernel import entries_of_kernel

    if not name or "/" in name or "\0" in name:
        return False
    until = time.monotonic() + _LOOKED_S
    return bool(entries_of_kernel(root, f"{name}.json", 1, until).entries)


def check_cached(root: str, option: str, value: str, there: Iterable[str]) -> None:
    """Refuse the value of a filter that names nothing of what is there, in a cache that is not empty.

    Raises:
        NotCachedError: there is no such thing; the error lists what there is, the most like it first.
    """
    names = set(there)
    if names and value not in names:
        raise NotCachedError(root, option, value, nearest_first(value, names))


def check_kernel(report: CacheReport, option: str, pattern: str | None) -> None:
    """Refuse a pattern of kernels' names that none of the root has, in a cache that is not empty.

    Raises:
        NotCachedError: there is no such kernel; the error lists what there is, the most like it first.
    """
    if pattern is not None:
        names = {entry.kernel for entry in report.entries}
        check_pattern(report.root, option, pattern, names)


def check_pattern(root: str, option: str, pattern: str, names: Collection[str]) -> None:
    """As `check_kernel`, of any names.

    Raises:
        NotCachedError: as `check_kernel`.
    """
    if not names or any(fnmatch.fnmatchcase(name, pattern) for name in names):
        return
    wider: str | None = f"*{pattern}*"
    if not any(pattern in name for name in names):
        wider = None
    raise NotCachedError(root, option, pattern, nearest_first(pattern, names), wider)


def archs_in(report: CacheReport) -> list[str]:
    """The architectures of the entries of a root."""
    return [entry.arch for entry in report.entries if entry.arch is not None]


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun: ``1 entry``, ``3 entries``."""
    return f"{count} {one if count == 1 else many}"


def finding_rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """The fields of each finding by name, for JSON."""
    return [finding.as_json() for finding in findings]


def tell_findings(report: CacheReport) -> None:
    """Warn of what is wrong in the root, three times of a code, for a command that has looked for another reason."""
    told: Counter[str] = Counter()
    for finding in report.findings:
        told[finding.code] += 1
        if told[finding.code] <= _EXAMPLES:
            say(f"warning: {finding.subject}: {finding.fact}; {finding.fix}")
    for code, number in told.items():
        if number > _EXAMPLES:
            say(f"note: and {number - _EXAMPLES} more such [{code}]; --json names each")


def tell(lines: Sequence[str]) -> None:
    """Say the first ten lines, and how many more there are."""
    for line in lines[:_MOST_LINES]:
        say(line)
    more = len(lines) - _MOST_LINES
    if more > 0:
        say(f"note: and {more} more such; --json names each")
