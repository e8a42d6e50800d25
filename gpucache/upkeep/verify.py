"""`verify`: runs the judge (`gpucache.report.judge`) over every entry of a root, and hands what it finds to `repair`.

Checked are digests, ``__grp__`` paths, metadata, manifests, and the record of this host's devices. The first look
takes no lock. What it finds wrong is looked at again, for a repair under the key's lock, and only what is then still as
it was judged is repaired.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from gpucache.directories import record
from gpucache.disk.capabilities import learn
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import holder
from gpucache.disk.reading import names, read
from gpucache.disk.sharing import mark_of
from gpucache.disk.within import Straight
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards, unlinked, view_key
from gpucache.report import unfit
from gpucache.report.cache_report import Progress
from gpucache.report.flaws import DAMAGE, NO_MARK, UNTOUCHED, Flaw
from gpucache.report.judge import Judge
from gpucache.store.key_lock import holding
from gpucache.upkeep.looks import Unit, flaws_of, look_again
from gpucache.upkeep.repair import LEFT, repair
from gpucache.upkeep.workers import looks

_RECORD_TORN = "record-torn"

CODES: Mapping[str, str] = dict(
    (
        *DAMAGE.items(),
        (_RECORD_TORN, "the record of this host's devices cannot be understood"),
        *UNTOUCHED.items(),
        *unfit.CODES.items(),
    )
)
"""Every code that a finding of `verify` can have, with what it means."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A finding of `verify`, and what came of its repair."""

    finding: Finding
    repaired: bool = False
    note: str = ""
    """What was done about it, or why nothing was; empty where nothing was asked."""

    def as_json(self) -> dict[str, Any]:
        """The finding's fields, whether it was repaired, and the note, as ``verify --json`` prints them."""
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
        """The findings that were not repaired."""
        return tuple(one for one in self.findings if not one.repaired)

    def as_json(self) -> dict[str, Any]:
        """Every field by its name, as ``verify --json`` prints them."""
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
    real_root = os.path.realpath(root)
    work = _Verifying(real_root, repair, progress)
    with work.disk:
        return work.verification(processes)


class _Verifying:
    """One verification of a root, and what it has found so far."""

    def __init__(self, root: str, repair: bool, progress: Progress | None) -> None:
        self.root = root
        self.repair = repair
        self.progress = progress
        self.judge = Judge()
        self.found: list[Checked] = []
        self.disk = Straight()
        self.locks = LockPlace(root, self.disk)
        self.tried = False

    def verification(self, processes: int | None) -> Verification:
        units = self._units()
        self._record()
        self._modes()
        files = done = 0
        total = sum(unit.directories for unit in units)
        twice = not self.repair
        with closing(looks(units, twice, processes)) as looked:
            for unit, seen in zip(units, looked, strict=True):
                files += seen.files
                if seen.flaws and self.repair:
                    self._repair(unit, set(seen.flaws))
                else:
                    for flaw in seen.flaws:
                        self._tell(flaw)
                done += unit.directories
                if self.progress is not None:
                    self.progress(done, total)
        return Verification(
            root=self.root,
            entries=len(units),
            files=files,
            findings=tuple(self.found),
        )

    # ---- what there is

    def _units(self) -> list[Unit]:
        """List the directories of each key, sorted by key. Tell of links on the way, and of what cannot be listed."""
        self._tell_links(self.root, ("triton", "gpucache"))
        ours = paths.ours(self.root)
        for directory in (f"{self.root}/triton", f"{self.root}/gpucache", ours):
            self._tell_links(directory)
        for name in ("devices", "store"):
            directory = paths.ours(self.root, name)
            self._tell_links(directory)
        stored: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        for shard in shards(self.root):
            for store_key, path in self._keys(shard, STORE_KEY):
                key = view_key(store_key)
                stored.setdefault(key, []).append(path)
        for name, directory in device_directories(self.root):
            is_tritons = name not in (".", "triton")  # else there may be links of others
            for key, path in self._keys(directory, KEY, all_links=is_tritons):
                others.setdefault(key, []).append(path)
        units = []
        keys = stored.keys() | others.keys()
        for key in sorted(keys):
            in_store = tuple(stored.get(key, ()))
            in_devices = tuple(others.get(key, ()))
            units.append(Unit(key, in_store, in_devices))
        return units

    def _tell_links(self, directory: str, wanted: Sequence[str] | None = None) -> None:
        """Tell of the links in a directory, unless the directory is behind a link; ``wanted``: the names to tell of."""
        if os.path.realpath(directory) != directory:
            return
        links = self._names(directory)
        for name, is_link in links.items():
            if is_link and (wanted is None or name in wanted):
                self._tell_link(f"{directory}/{name}")

    def _keys(
        self, directory: str, pattern: re.Pattern[str], all_links: bool = True
    ) -> Iterator[tuple[str, str]]:
        """Yield the keys in a directory, with the path of each; tell of the links that are named so, or of all."""
        links = self._names(directory)
        for name, is_link in links.items():
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
        if unlinked(self.root, "devices") is None:
            return
        if os.path.islink(path):
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

    def _modes(self) -> None:
        """Tell of what other users cannot use, where the root is shared."""
        mark = mark_of(self.root)
        if mark is None:
            return
        note = "a repair changes no modes" if self.repair else ""
        for finding in unfit.findings(self.root, mark.sharing):
            self.found.append(Checked(finding, note=note))

    # ---- one key

    def _repair(self, unit: Unit, first: set[Flaw]) -> None:
        """Repair what a second look, under the key's lock, still finds as the first did; tell what came of it."""
        self._try_mount()
        with ExitStack() as stack:
            refused = self._locked(stack, unit)
            again = self.judge.key(unit.stored, unit.others)
            same = first & set(flaws_of(again))
            notes: Mapping[str, str] = {}
            if same and refused is None:
                notes = repair(self.root, self.judge, again, same, self.disk)
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
                finding = flaw.finding(self.root)
                checked = Checked(finding, repaired, note)
                self.found.append(checked)

    def _try_mount(self) -> None:
        """Try, once, whether files can be linked: where they cannot, copies are no flaw, and nothing mends them."""
        if self.tried:
            return
        self.tried = True
        places = (unlinked(self.root, "tmp"), unlinked(self.root, "mounts"))
        if None not in places:
            learn(self.root, again=True)

    def _locked(self, stack: ExitStack, unit: Unit) -> str | None:
        """Take the locks of all entries of a key until ``stack`` is closed; tell why they cannot be, or None."""
        locks = unlinked(self.root, "locks")
        quarantine = unlinked(self.root, "quarantine")
        if locks is None or quarantine is None:
            return "where our locks or the quarantine should be is a link"
        if not self.disk.lexists(self.locks.inside):
            return None  # nobody has made any
        stored = map(os.path.basename, unit.stored)
        keys = {unit.key, *stored}
        for name in sorted(keys):
            path = self.locks.inside
            try:
                path = f"{self.locks.directory()}/{name}.lock"
                held = stack.enter_context(holding(path, "its repair", self.disk))
            except OSError as error:
                return f"{path}: {os.strerror(error.errno or 0)}"
            if not held:
                return f"it is locked by {holder(path)}"
        return None

    # ---- what was found

    def _tell_link(self, path: str) -> None:
        flaw = Flaw("link", path, "it is not followed", NO_MARK)
        self._tell(flaw)

    def _tell_unreadable(self, path: str, error: OSError) -> None:
        why = os.strerror(error.errno or 0)
        flaw = Flaw("unreadable", path, why, NO_MARK)
        self._tell(flaw)

    def _tell_record_torn(self, path: str, fact: str) -> None:
        finding = Finding(_RECORD_TORN, "error", path, fact, "gpucache provision")
        self.found.append(Checked(finding))

    def _tell(self, flaw: Flaw) -> None:
        finding = flaw.finding(self.root)
        self.found.append(Checked(finding))
