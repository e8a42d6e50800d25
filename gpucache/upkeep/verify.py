"""Check every entry below a root, and repair what can be: digests, ``__grp__`` paths, metadata, manifests, the record.

Looks without a lock. What is wrong is looked at again, for a repair under the key's lock, and only what is then still
as it was judged is repaired.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from gpucache.directories import record
from gpucache.disk.locks import holder
from gpucache.disk.reading import names, read
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards, unlinked, view_key
from gpucache.report.cache_report import Progress
from gpucache.report.flaws import DAMAGE, UNTOUCHED, Flaw
from gpucache.report.judge import Judge
from gpucache.store.key_lock import holding, lock_directory
from gpucache.upkeep.looks import Unit, flaws_of, look_again
from gpucache.upkeep.repair import LEFT, repair
from gpucache.upkeep.workers import looks

_RECORD_TORN = "record-torn"

CODES: Mapping[str, str] = dict(
    (
        *DAMAGE.items(),
        (_RECORD_TORN, "the record of this host's devices cannot be understood"),
        *UNTOUCHED.items(),
    )
)
"""Every code, and what it means."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A finding of `verify`, and what came of its repair."""

    finding: Finding
    repaired: bool = False
    note: str = ""
    """What was done about it, or why nothing was; empty where nothing was asked."""

    def as_json(self) -> dict[str, Any]:
        """The finding's fields, and what came of it."""
        return {**self.finding.as_json(), "repaired": self.repaired, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How much was checked, and all that was found wrong."""

    root: str
    entries: int
    """Kernels, libraries and autotune results, by Triton's key."""
    files: int
    """In all directories of the entries: a hard link counts each time."""
    findings: tuple[Checked, ...]

    @property
    def unrepaired(self) -> tuple[Checked, ...]:
        """The findings that are still so."""
        return tuple(one for one in self.findings if not one.repaired)

    def as_json(self) -> dict[str, Any]:
        """Every field, by its name."""
        return {
            "root": self.root,
            "entries": self.entries,
            "files": self.files,
            "findings": [checked.as_json() for checked in self.findings],
        }


def verify(
    root: str,
    repair: bool = False,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Verification:
    """Check all that is cached below a root; ``repair`` repairs what can be repaired.

    Without ``repair`` nothing is written, no use is stamped, and the access times of one's own files stay. Beside any
    readers, writers and removers. Follows no link; whether a group's path leads here is asked of its directory's name.
    What cannot be read, or repaired on a read-only disk, becomes a finding, never an exception.

    From two thousand keys on the first look is made by other processes of this Python, one for a thousand keys and at
    most ``processes``, by default as many as there are cores; 1 starts none. They only read, import nothing of the
    caller's, and end with this process. Repairs, and their locks, are this process's.

    A flipped byte in what stock Triton cached is not seen: it keeps no digests. To look from where the root has another
    path than for the processes that use it (in another container) finds groups that are right for them.
    """
    work = _Verifying(os.path.realpath(root), repair, progress)
    return work.verification(processes)


class _Verifying:
    """One verification of a root, and what it has found so far."""

    def __init__(self, root: str, repair: bool, progress: Progress | None) -> None:
        self.root = root
        self.repair = repair
        self.progress = progress
        self.judge = Judge()
        self.found: list[Checked] = []
        locks = lock_directory(root)
        self.locks = locks if os.path.isdir(locks) else None

    def verification(self, processes: int | None) -> Verification:
        units = self._units()
        self._record()
        files = done = 0
        total = sum(unit.directories for unit in units)
        with closing(looks(units, twice=not self.repair, processes=processes)) as seen:
            for unit, (count, flaws) in zip(units, seen, strict=True):
                files += count
                if flaws and self.repair:
                    self._repair(unit, set(flaws))
                else:
                    self.found += [Checked(flaw.finding(self.root)) for flaw in flaws]
                done += unit.directories
                if self.progress is not None:
                    self.progress(done, total)
        return Verification(
            root=self.root, entries=len(units), files=files, findings=tuple(self.found)
        )

    # ---- what there is

    def _units(self) -> list[Unit]:
        """The directories of each key, sorted by key. Tells of the links on the way, and of what cannot be listed."""
        self._tell_links(self.root, ("triton", "gpucache"))
        ours = paths.ours(self.root)
        for directory in (f"{self.root}/triton", f"{self.root}/gpucache", ours):
            self._tell_links(directory)
        for name in ("devices", "store"):
            self._tell_links(paths.ours(self.root, name))
        stored: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        for shard in shards(self.root):
            for key, path in self._keys(shard, STORE_KEY):
                stored.setdefault(view_key(key), []).append(path)
        for name, directory in device_directories(self.root):
            is_tritons = name not in (".", "triton")  # else there may be links of others
            for key, path in self._keys(directory, KEY, all_links=is_tritons):
                others.setdefault(key, []).append(path)
        units = []
        for key in sorted(stored.keys() | others.keys()):
            in_store = tuple(stored.get(key, ()))
            in_devices = tuple(others.get(key, ()))
            units.append(Unit(key, in_store, in_devices))
        return units

    def _tell_links(self, directory: str, wanted: Sequence[str] | None = None) -> None:
        """Tell of the links in a directory, unless a link leads to it; ``wanted``: of no others."""
        if os.path.realpath(directory) != directory:
            return
        for name, is_link in self._names(directory).items():
            if is_link and (wanted is None or name in wanted):
                self._tell_link(f"{directory}/{name}")

    def _keys(
        self, directory: str, pattern: re.Pattern[str], all_links: bool = True
    ) -> Iterator[tuple[str, str]]:
        """The keys in a directory, with the path of each; tells of the links that are named so, or of all."""
        for name, is_link in self._names(directory).items():
            path = f"{directory}/{name}"
            is_key = pattern.fullmatch(name) is not None
            if is_link and (is_key or all_links):
                self._tell_link(path)
            elif is_key:
                yield name, path

    def _names(self, directory: str) -> Mapping[str, bool]:
        try:
            return names(directory)
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._tell_unreadable(directory, error)
            return {}

    def _record(self) -> None:
        """Check the record of this host's devices, if there is one."""
        host = paths.host_name()
        path = paths.record_path(self.root, host)
        if unlinked(self.root, "devices") is None or os.path.islink(path):
            return
        try:
            found = record.parse_record(read(path))
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell_unreadable(path, error)
        except ValueError as error:
            self._tell_record_torn(path, str(error))
        else:
            if found.host != host:
                self._tell_record_torn(path, f"it is the record of host {found.host}")

    # ---- one key

    def _repair(self, unit: Unit, first: set[Flaw]) -> None:
        """Repair what a second look, under the key's lock, still finds as the first did; tell what came of it."""
        with ExitStack() as stack:
            refused = self._locked(stack, unit)
            again = self.judge.key(unit.stored, unit.others)
            same = first & set(flaws_of(again))
            notes: Mapping[str, str] = {}
            if same and refused is None:
                notes = repair(self.root, self.judge, again, same)
            left = look_again(self.judge, unit)
        self.judge.forget()
        # By code and path alone: what is damaged as before may be another inode by now.
        still = {(flaw.code, flaw.subject) for flaw in left}
        for judged in again:
            for flaw in judged.flaws:
                is_gone = (flaw.code, flaw.subject) not in still
                repaired = refused is None and flaw in same and is_gone
                if flaw.code == "link" and not repaired:
                    note = LEFT
                elif refused is not None:
                    note = refused
                elif flaw in same:
                    note = notes.get(judged.path, "")
                else:
                    note = "it changed meanwhile"
                self.found.append(Checked(flaw.finding(self.root), repaired, note))

    def _locked(self, stack: ExitStack, unit: Unit) -> str | None:
        """Take the locks of all entries of a key until ``stack`` is closed; why they cannot be taken, or None."""
        needed = (unlinked(self.root, "locks"), unlinked(self.root, "quarantine"))
        if None in needed:
            return "where our locks or the quarantine should be is a link"
        if self.locks is None:
            return None
        keys = {unit.key, *map(os.path.basename, unit.stored)}
        for name in sorted(keys):
            path = f"{self.locks}/{name}.lock"
            try:
                held = stack.enter_context(holding(path, "its repair"))
            except OSError as error:
                return f"{path}: {os.strerror(error.errno or 0)}"
            if not held:
                return f"it is locked by {holder(path)}"
        return None

    # ---- what was found

    def _tell_link(self, path: str) -> None:
        self._tell(Flaw("link", path, "it is not followed", (0, 0)))

    def _tell_unreadable(self, path: str, error: OSError) -> None:
        why = os.strerror(error.errno or 0)
        self._tell(Flaw("unreadable", path, why, (0, 0)))

    def _tell_record_torn(self, path: str, fact: str) -> None:
        finding = Finding(_RECORD_TORN, "error", path, fact, "gpucache provision")
        self.found.append(Checked(finding))

    def _tell(self, flaw: Flaw) -> None:
        self.found.append(Checked(flaw.finding(self.root)))
