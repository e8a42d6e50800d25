"""`PrunePolicy`: removes what is old, over a limit, or of no more use, least recently used first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpucache.errors import ConfigurationError
from gpucache.report.cache_report import CacheReport
from gpucache.report.entries import Entry, EntryKind
from gpucache.report.selection import Selection
from gpucache.report.strays import Stray
from gpucache.report.versions import is_of, versions
from gpucache.store.inductor_units import LEAST_GRACE_S, Buckets, Unit, find_everywhere
from gpucache.store.recency import (
    STAMP_S,
    Limits,
    check_grace,
    oldest_first,
    over_limits,
    plausible,
    spare_recent,
)
from gpucache.upkeep.losers import losers
from gpucache.upkeep.plan import Plan, used_lately
from gpucache.upkeep.slim import slimmed_bytes

T = TypeVar("T", Entry, Unit)

_QUARANTINE_S = 7 * 86400.0
_SWEPT = ("staging", "aside", "half-removed", "lock", "empty", "record", "triton-temporary")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """A policy by which some entries go: filters choose, and limits say how many.

    Filters are ``kernel``, ``kind``, ``arch``, ``triton_version`` and ``losers``. Without a limit all that these choose
    goes; with neither, only strays do.
    """

    max_size_bytes: int | None = None
    """Physical bytes of all entries, those of stock Triton included, and of the quarantine. What is in the quarantine
    goes first, and then what was least recently used."""
    max_age_s: float | None = None
    """Since the last use."""
    max_entries: int | None = None
    """How many entries stay; with ``keep_binaries``, how many stay as they are."""
    kernel: str | None = None
    """A pattern of the kernel's name, as a shell matches file names, case and all."""
    kind: EntryKind | None = None
    arch: str | None = None
    """``sm_90``."""
    triton_version: str | None = None
    """A version, or a specifier of PEP 440: ``3.9.0``, ``<3.6``. Of 3.0 to 3.2 the keys tell. Entries without a known
    version are not chosen."""
    losers: bool = False
    """Only kernels that an autotuner has tried and not taken (`gpucache.upkeep.losers`)."""
    inductor: bool = False
    """Whether ``max_size_bytes`` and ``max_age_s`` hold for TorchInductor's files as well, which then count and go by
    their last use like entries, and what its killed writers left is swept. Not with the filters or ``keep_binaries``,
    which are about entries."""
    keep_binaries: bool = False
    """Make the chosen entries smaller instead, without ``.ttir``, ``.ttgir``, ``.llir``, ``.ptx`` and ``.source``."""
    grace_s: float = 3 * STAMP_S
    """What was used in so many seconds stays, whatever else is said; of TorchInductor's 15 minutes at least. At
    least twice the interval of stamps (`GPUCACHE_STAMP_S`), or an entry in use could look older than it is."""

    def __post_init__(self) -> None:
        """Refuse limits without sense, by which everything could go.

        Raises:
            ConfigurationError: a limit is negative or no number.
        """
        for name in ("max_size_bytes", "max_age_s", "max_entries"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # so that NaN is refused
                raise ConfigurationError(name, str(value), "a number from 0 on")

    @property
    def limits(self) -> Limits:
        """The limits that say how much is to go."""
        return Limits(
            max_size_bytes=self.max_size_bytes,
            max_entries=self.max_entries,
            max_age_s=self.max_age_s,
        )

    @property
    def _filters(self) -> bool:
        """Whether something chooses which entries may go."""
        named = (self.kernel, self.kind, self.arch, self.triton_version)
        return self.losers or any(one is not None for one in named)

    def planned(self, report: CacheReport, environ: Mapping[str, str], now: float) -> Plan:
        """Plan what this policy removes from a root as it was scanned, at a time in seconds since the epoch.

        Raises:
            ConfigurationError: the grace is shorter than twice the interval of stamps, or the version specifier is
                none.
        """
        check_grace(self.grace_s, environ)
        self.check()
        buckets = find_everywhere(report.root) if self.inductor else Buckets((), (), ())
        strays = self._swept(report, buckets.units, now)
        matching = self._chosen(report.entries, now)
        chosen = oldest_first(matching, now)
        over = self._over(chosen, report, strays, buckets.units, now)
        entries, recent_entries = spare_recent(_of(Entry, over), self.grace_s, now)
        units, recent_units = spare_recent(_of(Unit, over), max(self.grace_s, LEAST_GRACE_S), now)
        kept = used_lately([*recent_entries, *recent_units], now)
        return Plan(
            root=report.root,
            removing=() if self.keep_binaries else tuple(entries),
            slimming=tuple(entries) if self.keep_binaries else (),
            units=(*buckets.temporaries, *units),
            empty=buckets.empty,
            strays=tuple(strays),
            kept=tuple(kept),
        )

    def check(self) -> None:
        """Refuse what makes no sense in any root.

        Raises:
            ConfigurationError: TorchInductor's files are to be chosen by what only entries have, or the version
                specifier is none.
        """
        if self.triton_version is not None:
            versions(self.triton_version)
        if self.inductor and (self._filters or self.keep_binaries):
            expected = "to be combined with what is about entries: --kernel, --kind, --arch, --triton-version, "
            expected += "--losers or --keep-binaries"
            raise ConfigurationError("--inductor", "on", expected)

    def _chosen(self, entries: Sequence[Entry], now: float) -> Sequence[Entry]:
        """The entries that the filters choose; with ``keep_binaries`` only those that would become smaller."""
        if self.losers:
            entries = losers(entries)
        named = Selection(kernel=self.kernel, kind=self.kind, arch=self.arch)
        entries = [entry for entry in entries if named.has(entry, now)]
        if self.triton_version is not None:
            matches = versions(self.triton_version)
            entries = [entry for entry in entries if is_of(entry, matches)]
        if self.keep_binaries:
            entries = [entry for entry in entries if slimmed_bytes(entry)]
        return entries

    def _swept(self, report: CacheReport, units: Sequence[Unit], now: float) -> list[Stray]:
        """The strays that go under this policy; of the quarantine, before any entry, as much as the limits want."""
        swept = []
        damaged = []
        for stray in report.strays:
            if stray.kind == "quarantine":
                damaged.append(stray)
            elif stray.dead and stray.kind in _SWEPT:
                swept.append(stray)
        most_age_s = _QUARANTINE_S
        if self.max_age_s is not None:
            most_age_s = min(most_age_s, self.max_age_s)
        left_bytes = _size_bytes(report.entries, damaged) + sum(map(_physical_bytes, units))
        for stray in sorted(damaged, key=_modified):
            too_old = now - plausible(stray.modified, now) > most_age_s
            too_large = self.max_size_bytes is not None and left_bytes > self.max_size_bytes
            if too_old or too_large:
                swept.append(stray)
                left_bytes -= stray.size_bytes
        return swept

    def _over(
        self,
        chosen: list[Entry],
        report: CacheReport,
        strays: Sequence[Stray],
        units: Sequence[Unit],
        now: float,
    ) -> Sequence[Entry | Unit]:
        """What has to go of ``chosen`` and ``units`` so that all is within the limits; least recently used first.

        ``strays`` are those that go anyway.
        """
        limits = self.limits
        entries: Sequence[Entry] = report.entries
        if not limits:
            return chosen if self._filters or self.keep_binaries else []
        counted = entries
        lost_bytes: Callable[[Entry | Unit], int] = _physical_bytes
        if self.keep_binaries:
            counted = [entry for entry in entries if slimmed_bytes(entry)]
            lost_bytes = _slimmed_bytes
        gone = set(strays)
        staying = []
        for stray in report.strays:
            if stray.kind == "quarantine" and stray not in gone:
                staying.append(stray)
        of_number = Limits(max_entries=limits.max_entries)
        too_many = over_limits(
            chosen, of_number, lost_bytes, size_bytes=0, count=len(counted), now=now
        )
        size_bytes = _size_bytes(entries, staying) + sum(map(_physical_bytes, units))
        size_bytes -= sum(map(lost_bytes, too_many))
        others: list[Entry | Unit] = [*chosen[len(too_many) :], *units]
        of_size = Limits(max_size_bytes=limits.max_size_bytes, max_age_s=limits.max_age_s)
        too_large = over_limits(
            oldest_first(others, now), of_size, lost_bytes, size_bytes=size_bytes, count=0, now=now
        )
        return oldest_first([*too_many, *too_large], now)


def _of(kind: type[T], mixed: Iterable[object]) -> list[T]:
    """Those of one kind, in their order."""
    return [one for one in mixed if isinstance(one, kind)]


def _physical_bytes(one: Entry | Unit) -> int:
    return one.physical_bytes


def _slimmed_bytes(one: Entry | Unit) -> int:
    return slimmed_bytes(one) if isinstance(one, Entry) else 0


def _modified(stray: Stray) -> float:
    return stray.modified


def _size_bytes(entries: Iterable[Entry], damaged: Iterable[Stray]) -> int:
    """What entries take with what is in the quarantine."""
    entries_bytes = sum(entry.physical_bytes for entry in entries)
    return entries_bytes + sum(stray.size_bytes for stray in damaged)
