"""Check every entry below a root, and mend what can be: digests, ``__grp__`` paths, metadata, manifests, the record.

Looks without a lock. What is wrong is looked at again, for a repair under the key's lock, and only what is then still
as it was judged is mended.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from gpucache.directories import record
from gpucache.disk.locks import holder
from gpucache.disk.reading import listing, read
from gpucache.findings import Finding, Level, repair_command
from gpucache.layout import paths
from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards, unlinked, view_key
from gpucache.report.flaws import Flaw, Judged
from gpucache.report.judge import Judge
from gpucache.store.key_lock import KeyLock, lock_directory
from gpucache.upkeep.repair import LEFT, repair

CODES = {
    # the store, and its views in device directories
    "manifest-missing": "an entry or view of ours has no __entry__.json",
    "manifest-torn": "the __entry__.json of an entry or view cannot be understood",
    "digest-mismatch": "a file's content is not what was published",
    "times-changed": "a file's content is what was published, its time is not: it was copied",
    "view-apart": "a view has copies of what the store has, and could have hard links",
    # stock Triton's directories too
    "file-missing": "a file of an entry is not there, or is no file",
    "not-a-directory": "something else is where a key's directory belongs",
    "metadata-torn": "K.json is not a kernel's metadata: stock Triton crashes at every start",
    "key-mismatch": "a key's directory has another kernel, which would be launched in its place",
    "group-torn": "a __grp__ file is missing or torn: Triton before 3.7 crashes at every start",
    "group-elsewhere": "a __grp__ file names another directory, though the files are here: it was moved or copied",
    "group-dangling": "a __grp__ file names files that are not here",
    "binary-cut": "a file of a kernel is empty or zeros, or a binary shorter than its ELF header says",
    "autotune-torn": "an autotune result does not parse: stock Triton crashes at every start",
    # nothing that could be mended here
    "record-torn": "the record of this host's devices cannot be understood",
    "link": "a symbolic link lies in the cache: it is not followed",
    "unreadable": "something could not be read",
}
"""Every code, and what it means."""

_WARNINGS = ("times-changed", "view-apart", "group-elsewhere", "link")
_FIXES = {
    "record-torn": "gpucache provision",
    "link": "put what it leads to in its place, or remove it",
    "unreadable": "look at it as its owner",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """Something that is, or was, wrong."""

    finding: Finding
    repaired: bool = False
    note: str = ""
    """What was done about it, or why nothing was; empty where nothing was asked."""

    def as_json(self) -> dict[str, Any]:
        """The finding's fields, and what came of it."""
        return {**self.finding.as_json(), "repaired": self.repaired, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked, and what was wrong."""

    root: str
    entries: int
    """Kernels, libraries and autotune results, by Triton's key."""
    files: int
    """In all directories of the entries: a hard link counts each time."""
    findings: tuple[Checked, ...]

    @property
    def unrepaired(self) -> tuple[Checked, ...]:
        """What is still wrong."""
        return tuple(one for one in self.findings if not one.repaired)

    def as_json(self) -> dict[str, Any]:
        """Every field, by its name."""
        counts = {name: getattr(self, name) for name in ("root", "entries", "files")}
        return {**counts, "findings": [one.as_json() for one in self.findings]}


def verify(
    root: str, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check all that is cached below a root; ``repair`` mends what can be mended.

    Without ``repair`` nothing is written, no use is stamped, and the access times of one's own files stay. Beside any
    readers, writers and removers. Follows no link; whether a group's path leads here is asked of its directory's name.
    What cannot be read, or mended on a read-only disk, becomes a finding, never an exception.

    A flipped byte in what stock Triton cached is not seen: it keeps no digests. To look from where the root has another
    path than for the processes that use it (in another container) finds groups that are right for them.
    """
    return _Verifying(os.path.realpath(root), repair, progress).done()


@dataclass(slots=True)
class _Unit:
    """All directories of one of Triton's keys."""

    stored: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class _Verifying:
    def __init__(
        self, root: str, repair: bool, progress: Callable[[int, int], None] | None
    ) -> None:
        self.root, self.repair, self.progress = root, repair, progress
        self.judge = Judge()
        self.units: dict[str, _Unit] = {}
        self.found: list[Checked] = []
        self.files = 0
        locks = lock_directory(root)
        self.locks = locks if os.path.isdir(locks) else None

    def done(self) -> Verification:
        self._collect()
        self._record()
        total, count = sum(len(unit.stored) + len(unit.others) for unit in self.units.values()), 0
        for key in sorted(self.units):
            self._check(key, self.units[key])
            count += len(self.units[key].stored) + len(self.units[key].others)
            if self.progress is not None:
                self.progress(count, total)
        return Verification(
            root=self.root, entries=len(self.units), files=self.files, findings=tuple(self.found)
        )

    # ---- what there is

    def _collect(self) -> None:
        self._links(self.root, ("triton", "gpucache"))
        for directory in (f"{self.root}/triton", f"{self.root}/gpucache", paths.ours(self.root)):
            self._links(directory)
        for name in ("devices", "store"):
            self._links(paths.ours(self.root, name))
        for shard in shards(self.root):
            for key, path in self._keys(shard, STORE_KEY):
                self.units.setdefault(view_key(key), _Unit()).stored.append(path)
        for name, directory in device_directories(self.root):
            for key, path in self._keys(directory, KEY, name not in (".", "triton")):
                self.units.setdefault(key, _Unit()).others.append(path)

    def _links(self, directory: str, names: Sequence[str] | None = None) -> None:
        """Tell of the links in a directory that no link leads to; ``names``: of no others."""
        for name in self._names(directory) if os.path.realpath(directory) == directory else ():
            if (names is None or name in names) and os.path.islink(f"{directory}/{name}"):
                self._tell("link", f"{directory}/{name}", "it is not followed")

    def _keys(
        self, directory: str, pattern: re.Pattern[str], all_links: bool = True
    ) -> Iterator[tuple[str, str]]:
        for name in self._names(directory):
            path, known = f"{directory}/{name}", pattern.fullmatch(name)
            if (known or all_links) and os.path.islink(path):
                self._tell("link", path, "it is not followed")
            elif known:
                yield name, path

    def _names(self, directory: str) -> list[str]:
        try:
            return list(listing(directory)[1])
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell("unreadable", directory, os.strerror(error.errno or 0))
            return []

    def _record(self) -> None:
        host = paths.host_name()
        path = paths.record_path(self.root, host)
        if unlinked(self.root, "devices") is None or os.path.islink(path):
            return
        try:
            found = record.parse_record(read(path))
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell("unreadable", path, error.strerror or str(error))
        except ValueError as error:
            self._tell("record-torn", path, str(error))
        else:
            if found.host != host:
                self._tell("record-torn", path, f"it is the record of host {found.host}")

    # ---- one key

    def _check(self, key: str, unit: _Unit) -> None:
        first = self.judge.key(unit.stored, unit.others)
        self.files += sum(len(one.files) for one in first)
        flaws = _flaws(first)
        if not flaws:
            return
        if not self.repair:
            self._told(
                [
                    flaw
                    for flaw in _flaws(self.judge.key(unit.stored, unit.others))
                    if flaw in set(flaws)
                ]
            )
            return
        with ExitStack() as stack:
            why = self._locked(stack, sys._getframe(), key, unit)
            again = self.judge.key(unit.stored, unit.others)
            same = set(_flaws(again)) & set(flaws)
            notes = repair(self.root, self.judge, again, same) if why is None and same else {}
            left = {
                (flaw.code, flaw.subject)
                for flaw in _flaws(self.judge.key(unit.stored, unit.others))
            }
        for one in again:
            for flaw in one.flaws:
                repaired = flaw in same and why is None and (flaw.code, flaw.subject) not in left
                note = why or (notes.get(one.path, "") if flaw in same else "it changed meanwhile")
                kept = flaw.code == "link" and not repaired
                self._tell(flaw.code, flaw.subject, flaw.fact, repaired, LEFT if kept else note)

    def _locked(self, stack: ExitStack, frame: Any, key: str, unit: _Unit) -> str | None:
        """Take the locks of all entries of a key, for as long as ``frame`` runs; why not, or None."""
        if unlinked(self.root, "locks") is None or unlinked(self.root, "quarantine") is None:
            return "where our locks or the quarantine should be is a link"
        if self.locks is None:
            return None
        for name in sorted({key, *map(os.path.basename, unit.stored)}):
            lock = KeyLock(f"{self.locks}/{name}.lock")
            try:
                if not lock.try_acquire(frame, "its repair"):
                    return f"it is locked by {holder(lock.path)}"
            except OSError as error:
                return f"{lock.path}: {os.strerror(error.errno or 0)}"
            stack.callback(lock.release)
        return None

    # ---- what was found

    def _told(self, flaws: Sequence[Flaw]) -> None:
        for flaw in flaws:
            self._tell(flaw.code, flaw.subject, flaw.fact)

    def _tell(
        self, code: str, subject: str, fact: str, repaired: bool = False, note: str = ""
    ) -> None:
        level: Level = "warning" if code in _WARNINGS else "error"
        fix = _FIXES.get(code, repair_command(self.root))
        self.found.append(Checked(Finding(code, level, subject, fact, fix), repaired, note))


def _flaws(judged: Sequence[Judged]) -> list[Flaw]:
    return [flaw for one in judged for flaw in one.flaws]
