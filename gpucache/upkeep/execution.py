"""`Execution`: carries out a plan, one entry, stray or file after another, and counts what that frees."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gpucache.disk import mounts
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.within import Straight
from gpucache.layout.jit_caches import by_name
from gpucache.report.entries import Copy, Entry
from gpucache.report.entry_builder import touched
from gpucache.report.strays import Stray
from gpucache.store import jit_removal
from gpucache.store.deletion import NOTHING, Freed, delete
from gpucache.store.foreign import foreign_directories, is_removable, view_at
from gpucache.store.inductor_units import InductorFile, Unit, remove_empty, remove_file, remove_unit
from gpucache.store.jit_units import JitUnit
from gpucache.store.key_lock import remove_if_free
from gpucache.store.manifest import MANIFEST
from gpucache.store.removal import InUse, Target, finish, refuse_mounts, remove
from gpucache.upkeep.slim import slim


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry, stray or file that was to go, and stays."""

    key: str
    """An entry's key; of what is no entry, the path."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a plan has removed, and what it has skipped."""

    entries: int = 0
    """How many are gone."""
    slimmed: int = 0
    """How many are smaller."""
    strays: int = 0
    units: int = 0
    """How many units of other JIT caches are gone."""
    freed: Freed = NOTHING
    """What all of these freed, the files of TorchInductor's, and what killed writers had left of JIT caches."""
    skipped: tuple[Skipped, ...] = ()


class Execution:
    """A plan being carried out in a root. Beside any readers, writers and removers; one thread at a time."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._disk = Straight()
        self._locks = self._lock_directory()
        self._foreign = {one.path: one for one in foreign_directories(root)}
        self._mounted = mounts.below([root, *self._foreign])
        self._entries = self._slimmed = self._strays = self._units = 0
        self._freed = Freed()
        self._skipped: list[Skipped] = []

    def outcome(self) -> Outcome:
        """Sum up what was done so far."""
        return Outcome(
            entries=self._entries,
            slimmed=self._slimmed,
            strays=self._strays,
            units=self._units,
            freed=self._freed,
            skipped=tuple(self._skipped),
        )

    def remove(self, entry: Entry) -> None:
        """Remove an entry whole, unless it was used since it was scanned or is in use."""
        targets = self._targets(entry)
        try:
            self._refuse(entry, targets)
            freed = remove(entry.key, targets, self._locks, self._disk)
        except InUse as why:
            self._skip(entry, targets, why)
            return
        self._entries += 1
        self._free(freed)

    def slim(self, entry: Entry) -> None:
        """Take from a kernel's entry what no launch needs, unless it was used since it was scanned or is in use."""
        targets = self._targets(entry)
        try:
            self._refuse(entry, targets)
            group = f"{entry.kernel}.json"
            freed = slim(self.root, entry.key, group, targets, self._locks, self._disk)
        except InUse as why:
            self._skip(entry, targets, why)
            return
        self._slimmed += 1
        self._free(freed)

    def sweep(self, stray: Stray) -> None:
        """Remove a stray, unless somebody has begun to use it."""
        try:
            refuse_mounts([stray.path], self._mounted)
            freed = self._swept(stray)
        except InUse as why:
            self._note(stray.path, why)
            return
        is_gone = not self._disk.lexists(stray.path)
        if freed.files or is_gone:
            self._strays += 1
            self._free([freed])

    def remove_files(self, files: Collection[InductorFile]) -> None:
        """Remove files of TorchInductor's, each whole, and the directories that become empty."""
        for file in files:
            try:
                self._free([remove_file(file, self._disk)])
            except InUse as why:
                self._note(file.path, why)
        directories = {os.path.dirname(file.path) for file in files}
        remove_empty(self.root, directories, self._disk)

    def _lock_directory(self) -> str | None:
        """The directory of the root's locks; None where nobody has made one, so that nobody can hold a lock."""
        place = LockPlace(self.root, self._disk)
        if not self._disk.lexists(place.inside):
            return None
        return place.directory()

    def remove_units(self, units: Iterable[Unit], empty: Iterable[str]) -> None:
        """Remove what may go alone of TorchInductor's, and directories that were empty for a day.

        Those that become empty now stay: torch may be about to write there.
        """
        for directory in empty:
            with suppress(OSError):  # something is in it again
                self._disk.rmdir(directory)
        for unit in units:
            try:
                self._free([remove_unit(unit, self._disk)])
            except InUse as why:
                self._note(unit.path, why)

    def remove_jit_units(self, units: Iterable[JitUnit], left: Iterable[JitUnit]) -> None:
        """Remove units of other JIT caches, and what killed writers of these have left."""
        for unit in left:
            try:
                self._free(
                    [jit_removal.sweep(unit, by_name(unit.cache), self._mounted, self._disk)]
                )
            except InUse as why:
                self._note(unit.path, why)
        for unit in units:
            cache = by_name(unit.cache)
            try:
                freed = jit_removal.remove_unit(unit, cache, self._mounted, self._disk)
            except InUse as why:
                self._note(unit.path, why)
                continue
            self._units += bool(freed.files)
            self._free([freed])

    def close(self) -> None:
        """Close the directories that are held open."""
        self._disk.close()

    # ---- what must stay as it is

    def _targets(self, entry: Entry) -> list[Target]:
        """List the directories of an entry as they were scanned; whether each has a manifest is asked now.

        Of those outside the root only the views are listed that still are views of this entry, and may be removed.
        """
        targets = []
        for copy in entry.copies:
            if not self._is_inside(copy.path) and not self._is_view(entry, copy):
                continue
            is_ours = self._disk.lexists(f"{copy.path}/{MANIFEST}")
            target = Target(copy.path, copy.mark, is_ours)
            targets.append(target)
        return targets

    def _is_inside(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def _is_view(self, entry: Entry, copy: Copy) -> bool:
        """Whether a directory outside the root is a view of this entry now, which this process may remove."""
        foreign = self._foreign.get(os.path.dirname(copy.path))
        if foreign is None or not is_removable(foreign):
            return False
        seen = view_at(foreign, self.root, entry.key)
        return seen is not None and seen.path == copy.path

    def _refuse(self, entry: Entry, targets: Sequence[Target]) -> None:
        """Refuse to touch an entry that was used since the scan, or that is not all in the root itself.

        Raises:
            InUse: the entry was used, or a link or a mount leads out of the root.
        """
        for copy in entry.copies:
            if copy.kind != "stock":
                continue
            if touched(copy.path) > entry.used:
                raise InUse("it was used meanwhile")
        directories = [target.path for target in targets]
        refuse_mounts(directories, self._mounted)

    # ---- what was done

    def _swept(self, stray: Stray) -> Freed:
        if stray.kind == "lock":
            is_gone = remove_if_free(stray.path, self._disk)
            if not is_gone:
                return NOTHING
            return Freed(1, stray.size_bytes, stray.size_bytes)
        if stray.kind == "half-removed":
            return finish(stray.path, stray.modified, self._locks, self._disk)
        if stray.kind == "empty":
            with suppress(OSError):  # somebody has begun to fill it
                self._disk.rmdir(stray.path)
            return NOTHING
        return delete(stray.path, self._disk)

    def _skip(self, entry: Entry, targets: Iterable[Target], why: InUse) -> None:
        """Note that an entry stays; one that is gone was another process's to remove."""
        directories = [target.path for target in targets]
        if any(map(self._disk.lexists, directories)):
            self._note(entry.key, why)

    def _note(self, key: str, why: InUse) -> None:
        skipped = Skipped(key, str(why))
        self._skipped.append(skipped)

    def _free(self, freed: Iterable[Freed]) -> None:
        for one in freed:
            self._freed = self._freed.plus(one)
