"""`verify_units`: finds emptied and cut files of other JIT caches, and removes the units that have some.

A unit is removed whole: its software then makes it again, where it would have failed or recompiled at every start.
Nothing is moved to the quarantine, since nothing of it is worth a look that its software could not make anew.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpucache.disk import mounts
from gpucache.disk.within import Straight
from gpucache.findings import Finding, Level
from gpucache.layout.jit_cache import JitCache
from gpucache.report.cache_report import Progress
from gpucache.report.jit_damage import CODES, Damage, damages
from gpucache.store.jit_locks import is_being_made
from gpucache.store.jit_removal import remove_unit
from gpucache.store.jit_units import JitUnit, find, measured_again
from gpucache.store.removal import InUse
from gpucache.upkeep.verify import Checked

UNIT_CODES: Mapping[str, str] = dict(CODES.items())
"""Every code that a finding of `verify_units` can have, with what it means."""
ORPHAN_S = 600.0
"""A lock by its existence counts as left behind after so long, if nobody has it open and nothing has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitVerification:
    """How much of JIT caches was checked, and all that was found wrong."""

    root: str
    caches: tuple[str, ...]
    units: int
    files: int
    findings: tuple[Checked, ...]

    @property
    def unrepaired(self) -> tuple[Checked, ...]:
        """The findings that were not repaired."""
        return tuple(one for one in self.findings if not one.repaired)

    def as_json(self) -> dict[str, Any]:
        """Every field by its name, as ``verify --cache NAME --json`` prints them."""
        return {
            "root": self.root,
            "caches": list(self.caches),
            "units": self.units,
            "files": self.files,
            "findings": [checked.as_json() for checked in self.findings],
        }


def verify_units(
    root: str,
    caches: Sequence[JitCache],
    repair: bool = False,
    progress: Progress | None = None,
) -> UnitVerification:
    """Check the files of some JIT caches in a root; ``repair`` removes each unit that has a damaged file.

    Beside any process of their software: what is being made is passed over, and what is found wrong is looked at
    again. Without ``repair`` nothing is written, and the access times of one's own files stay.
    """
    work = _Verifying(os.path.realpath(root), repair)
    found = find(work.root, caches)
    total = sum(len(one.units) for one in found)
    done = files = 0
    with work.disk:
        for one in found:
            for unit in one.units:
                work.look(unit, one.cache)
                done += 1
                files += unit.files
                if progress is not None and done % 64 == 0:
                    progress(done, total)
    return UnitVerification(
        root=work.root,
        caches=tuple(cache.name for cache in caches),
        units=total,
        files=files,
        findings=tuple(work.found),
    )


class _Verifying:
    """One verification, and what it has found so far."""

    def __init__(self, root: str, repair: bool) -> None:
        self.root = root
        self.repair = repair
        self.disk = Straight()
        self.mounted = mounts.below([root])
        self.found: list[Checked] = []

    def look(self, unit: JitUnit, cache: JitCache) -> None:
        """Judge one unit twice, and repair what is still wrong the second time, if that is asked."""
        first = list(damages(unit))
        if not first or is_being_made(unit, ORPHAN_S, self.disk):
            return
        now = None
        with suppress(InUse):  # closed meanwhile
            now = measured_again(unit, cache, self.disk)  # a rename may have put a whole file there
        if now is None:
            return
        again = [damage for damage in damages(now) if damage in first]
        repaired, note = False, ""
        if again and self.repair:
            repaired, note = self._repair(now, cache, again)
        for damage in again:
            finding = self._finding(damage, cache)
            self.found.append(Checked(finding, repaired, note))

    def _repair(self, unit: JitUnit, cache: JitCache, wrong: Sequence[Damage]) -> tuple[bool, str]:
        """Remove a unit; whether it is gone, and a note."""
        if all(damage.code == "unit-unreadable" for damage in wrong):
            return False, "what cannot be read may be whole for others"
        try:
            remove_unit(unit, cache, self.mounted, self.disk)
        except InUse as why:
            return False, str(why)
        return True, f"{unit.name} was removed, and {cache.software} makes it again"

    def _finding(self, damage: Damage, cache: JitCache) -> Finding:
        level: Level = "error" if damage.code in ("unit-empty", "unit-cut") else "warning"
        fix = f"gpucache verify --cache {cache.name} --repair --root {shlex.quote(self.root)}"
        if damage.code == "unit-unreadable":
            fix = f"`ls -l {shlex.quote(damage.path)}`: whose it is, and its mode"
        return Finding(damage.code, level, damage.path, damage.fact, fix)
