"""Remove what is old, over a limit, or of no more use: a policy becomes a plan, and the plan a removal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from gpucache.disk import mounts
from gpucache.errors import ConfigurationError
from gpucache.layout import paths
from gpucache.report.cache_report import CacheReport
from gpucache.report.entries import Entry
from gpucache.report.entry_builder import touched
from gpucache.report.strays import Stray
from gpucache.store.key_lock import lock_directory, remove_if_free
from gpucache.store.manifest import MANIFEST
from gpucache.store.recency import STAMP_S, check_grace, is_recent, plausible
from gpucache.store.removal import (
    NOTHING,
    Freed,
    InUse,
    Target,
    delete,
    finish,
    refuse_mounts,
    remove,
)
from gpucache.store.size import count_anew_later
from gpucache.units import ago
from gpucache.upkeep.slim import kept, slim

_QUARANTINE_S = 7 * 86400.0
_SWEPT = ("staging", "aside", "half-removed", "lock", "quarantine", "empty", "triton-temporary")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """What may go, and how much of it: the filters (``arch``, ``triton_version``) choose, the limits say how far.

    Without a limit all that the filters choose goes; with neither, only strays do.
    """

    max_size_bytes: int | None = None
    """Physical bytes of all entries, those of stock Triton included; least recently used go first."""
    max_age_s: float | None = None
    """Since the last use."""
    max_entries: int | None = None
    """How many entries stay; with ``keep_binaries``, how many stay as they are."""
    arch: str | None = None
    """``sm_90``."""
    triton_version: str | None = None
    """A version, or a specifier of PEP 440: ``3.9.0``, ``<3.6``. Entries without a known version are not chosen."""
    keep_binaries: bool = False
    """Make the chosen entries smaller instead, without ``.ttir``, ``.ttgir``, ``.llir``, ``.ptx`` and ``.source``."""
    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays, whatever else is said. At least twice the interval of stamps
    (`GPUCACHE_STAMP_S`), or an entry in use could look older than it is."""

    @property
    def limited(self) -> bool:
        """Whether a limit says how much is to go."""
        return any(
            limit is not None for limit in (self.max_size_bytes, self.max_age_s, self.max_entries)
        )

    @property
    def filtered(self) -> bool:
        """Whether something says which entries may go."""
        return self.arch is not None or self.triton_version is not None


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that was to go, and stays."""

    key: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What was done."""

    entries: int = 0
    slimmed: int = 0
    strays: int = 0
    freed: Freed = NOTHING
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What is to go, as a value: nothing happens before `execute`."""

    root: str
    remove: tuple[Entry, ...]
    slim: tuple[Entry, ...]
    strays: tuple[Stray, ...]
    kept: tuple[Skipped, ...]
    """What the limits would have, and the grace keeps."""

    @property
    def physical_bytes(self) -> int:
        """What this is going to free: files with links elsewhere are not freed."""
        removed = sum(entry.physical_bytes - entry.held_bytes for entry in self.remove)
        slimmed = sum(
            min(slimmed_bytes(entry), entry.physical_bytes - entry.held_bytes)
            for entry in self.slim
        )
        return removed + slimmed + sum(stray.size_bytes for stray in self.strays)

    @property
    def logical_bytes(self) -> int:
        """Hard links counted each time."""
        slimmed = sum(
            slimmed_bytes(entry) * (len(entry.copies) if entry.stored else 1) for entry in self.slim
        )
        strays = sum(stray.size_bytes for stray in self.strays)
        return sum(entry.logical_bytes for entry in self.remove) + slimmed + strays

    def execute(self, progress: Callable[[int, int], None] | None = None) -> PruneResult:
        """Do it. Beside any readers, writers and removers; killed at any instant, every entry is whole or gone.

        An entry that was used since the plan was made, or whose key is locked, is skipped and told; so is what a link
        leads to.
        """
        done = _Execution(self.root)
        total = len(self.remove) + len(self.slim)
        count_anew_later(self.root)  # also if this is killed
        try:
            for stray in self.strays:  # first: whoever writes sweeps some of them too
                done.stray(stray)
            for number, entry in enumerate((*self.remove, *self.slim)):
                if progress is not None and number % 16 == 0:
                    progress(number, total)
                done.entry(entry, slimming=number >= len(self.remove))
        finally:
            count_anew_later(self.root)
        return done.removal()


def plan(
    report: CacheReport, policy: PrunePolicy, environ: Mapping[str, str], now: float | None = None
) -> PrunePlan:
    """What the policy removes from a root as it was scanned; ``now`` is in seconds since the epoch.

    Raises:
        ConfigurationError: the grace is shorter than twice the interval of stamps, or the version specifier is none.
    """
    now = time.time() if now is None else now
    check_grace(policy.grace_s, environ)
    chosen = sorted(_matching(report.entries, policy), key=lambda entry: plausible(entry.used, now))
    over = _over(chosen, report, policy, now)
    stale = tuple(entry for entry in over if not is_recent(entry.used, now, policy.grace_s))
    going = {entry.key for entry in stale}
    return PrunePlan(
        root=report.root,
        remove=() if policy.keep_binaries else stale,
        slim=stale if policy.keep_binaries else (),
        strays=tuple(stray for stray in report.strays if _swept(stray, now)),
        kept=tuple(
            Skipped(entry.key, f"used {ago(now - entry.used)}")
            for entry in over
            if entry.key not in going
        ),
    )


def _matching(entries: Iterable[Entry], policy: PrunePolicy) -> Iterable[Entry]:
    if policy.arch is not None:
        entries = [entry for entry in entries if entry.arch == policy.arch]
    if policy.triton_version is not None:
        wanted = _specifier(policy.triton_version)
        entries = [
            entry for entry in entries if entry.triton_version and wanted(entry.triton_version)
        ]
    return [entry for entry in entries if not policy.keep_binaries or slimmed_bytes(entry)]


def _specifier(text: str) -> Callable[[str], bool]:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        wanted = SpecifierSet(f"=={text}" if text[:1].isdigit() else text, prereleases=True)
    except InvalidSpecifier:
        raise ConfigurationError(
            "--triton-version", text, "a version specifier like '<3.6'"
        ) from None

    def matches(version: str) -> bool:
        try:
            return wanted.contains(version)
        except InvalidVersion:
            return False

    return matches


def _over(chosen: list[Entry], report: CacheReport, policy: PrunePolicy, now: float) -> list[Entry]:
    """Of what may go, oldest first: how far the limits reach."""
    if not policy.limited:
        return chosen if policy.filtered or policy.keep_binaries else []
    counted = [
        entry for entry in report.entries if not policy.keep_binaries or slimmed_bytes(entry)
    ]
    size, count = sum(entry.physical_bytes for entry in report.entries), len(counted)
    for number, entry in enumerate(chosen):
        old = policy.max_age_s is not None and now - plausible(entry.used, now) > policy.max_age_s
        large = policy.max_size_bytes is not None and size > policy.max_size_bytes
        many = policy.max_entries is not None and count > policy.max_entries
        if not (old or large or many):
            return chosen[:number]
        size -= slimmed_bytes(entry) if policy.keep_binaries else entry.physical_bytes
        count -= 1
    return chosen


def _swept(stray: Stray, now: float) -> bool:
    if stray.kind == "quarantine":
        return now - stray.modified > _QUARANTINE_S
    return stray.dead and stray.kind in _SWEPT


def slimmed_bytes(entry: Entry) -> int:
    """What a kernel's entry would lose without the files that no launch needs; 0 for what is no kernel."""
    if entry.kind != "kernel":
        return 0
    dropped = sum(file.size_bytes for file in entry.files if not kept(file.name))
    return dropped if entry.stored else dropped * len(entry.copies)


class _Execution:
    """A plan being carried out."""

    def __init__(self, root: str) -> None:
        self.root = root
        locks = lock_directory(root)
        self.locks = locks if os.path.isdir(locks) else None
        self.mounted = [point for point in mounts.points() if point.startswith(f"{root}/")]
        self.freed = Freed()
        self.counts = {"entries": 0, "slimmed": 0, "strays": 0}
        self.skipped: list[Skipped] = []
        self._straight: dict[str, bool] = {}

    def entry(self, entry: Entry, slimming: bool) -> None:
        places = [
            Target(copy.path, copy.mark, os.path.lexists(f"{copy.path}/{MANIFEST}"))
            for copy in entry.copies
        ]
        try:
            if any(
                copy.kind == "stock" and touched(copy.path) > entry.used for copy in entry.copies
            ):
                raise InUse("it was used meanwhile")
            refuse_mounts([place.path for place in places], self.mounted)
            self._no_link([*(place.path for place in places), paths.ours(self.root, "locks", "*")])
            if slimming:
                self._no_link([paths.ours(self.root, "tmp", "*")])
                freed = slim(self.root, entry.key, f"{entry.kernel}.json", places, self.locks)
            else:
                freed = remove(entry.key, places, self.locks)
        except InUse as why:
            # else another process was faster
            if any(os.path.lexists(place.path) for place in places):
                self.skipped.append(Skipped(entry.key, str(why)))
            return
        self._count("slimmed" if slimming else "entries", freed)

    def stray(self, stray: Stray) -> None:
        try:
            self._no_link([stray.path])
            refuse_mounts([stray.path], self.mounted)
            freed = self._swept(stray)
        except InUse as why:
            self.skipped.append(Skipped(stray.path, str(why)))
            return
        if freed.files or not os.path.lexists(stray.path):
            self._count("strays", [freed])

    def _swept(self, stray: Stray) -> Freed:
        if stray.kind == "lock":
            return (
                Freed(1, stray.size_bytes, stray.size_bytes)
                if remove_if_free(stray.path)
                else NOTHING
            )
        if stray.kind == "half-removed":
            self._no_link([paths.ours(self.root, "locks", "*")])
            return finish(stray.path, stray.modified, self.locks)
        if stray.kind == "empty":
            with suppress(OSError):  # somebody has begun to fill it
                os.rmdir(stray.path)
            return NOTHING
        return delete(stray.path)

    def _no_link(self, wanted: Iterable[str]) -> None:
        """Refuse what a link leads to: the root is a real path, and nothing outside is ours to touch."""
        for parent in map(os.path.dirname, wanted):
            if parent not in self._straight:
                self._straight[parent] = os.path.realpath(parent) == parent
            if not self._straight[parent] and parent.startswith(f"{self.root}/"):
                raise InUse(f"{parent} is, or is behind, a symbolic link")

    def _count(self, what: str, freed: Iterable[Freed]) -> None:
        self.counts[what] += 1
        for one in freed:
            self.freed = self.freed.plus(one)

    def removal(self) -> PruneResult:
        return PruneResult(**self.counts, freed=self.freed, skipped=tuple(self.skipped))
