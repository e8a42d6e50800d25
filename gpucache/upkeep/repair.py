"""Mend what `report.judge` found, under the key's lock: nothing is rewritten in place, and whole files are kept.

What one sound copy of an entry has, the others get as hard links; what nobody has goes to the quarantine, and the next
process compiles it again. New files are made aside and renamed to where they belong, so that a process that is killed
leaves the old one or the new one, and a reader that has a path finds a file of the same content there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

from gpucache.kernels.group import GROUP, read_group, write_group
from gpucache.report.flaws import Flaw
from gpucache.report.judge import Judge
from gpucache.report.judged import Judged
from gpucache.store.manifest import MANIFEST, Published, write_manifest
from gpucache.store.publish import link_view
from gpucache.store.quarantine import ASIDE, quarantine
from gpucache.store.stock import BUSY_S

LEFT = "links are not followed, and not removed"


def repair(root: str, judge: Judge, judged: Sequence[Judged], bad: Set[Flaw]) -> dict[str, str]:
    """Mend the directories of one key that have a flaw in ``bad``; what was done to each, or why nothing was.

    Beside any readers, and writers that honour the key's lock, which the caller holds. Killed at any instant, each
    entry is whole, as damaged as before, or gone. Follows no link.
    """
    work = _Repairing(root, judge, judged)
    return {one.path: work.outcome(one) for one in judged if bad & set(one.flaws)}


class _Repairing:
    def __init__(self, root: str, judge: Judge, judged: Sequence[Judged]) -> None:
        self.root, self.judge, self.judged = root, judge, judged

    def outcome(self, one: Judged) -> str:
        if one.codes <= {"link"}:
            return LEFT
        if "unreadable" in one.codes:
            return "what cannot be read is left alone"
        try:
            if one.stored:
                return self._entry(one)
            return self._view(one) if one.ours else self._stock(one)
        except OSError as error:
            return f"{error.filename or one.path}: {os.strerror(error.errno or 0)}"

    # ---- the store first

    def _entry(self, entry: Judged) -> str:
        if not entry.spoiled:
            return self._renewed(entry)
        with self._aside(entry.path) as aside:
            source = next(
                (
                    view.path
                    for view in self.judged
                    if _has(view, entry) and _linked_to(view, aside)
                ),
                None,
            )
            put_away = self._put_away(entry.path)
            if source is None:
                return put_away
            os.rename(aside, entry.path)
            return f"made again from {source}"

    # ---- then its views

    def _view(self, view: Judged) -> str:
        entry = self._entry_of(view)
        if view.spoiled:
            put_away = self._put_away(view.path)
            if entry is None or entry.manifest is None:
                return put_away
            linked = link_view(self.root, entry.path, view.path, entry.manifest, repair=False)
            return f"made again from {entry.path}" if linked else put_away
        if (
            view.codes & {"view-apart", "times-changed"}
            and entry is not None
            and _alike(view, entry)
        ):
            try:
                return self._linked(view, entry)
            except OSError:  # the device directory may be mounted for itself
                if "times-changed" not in view.codes:
                    raise
        if "times-changed" in view.codes:
            return self._renewed(view)
        group = view.manifest.facts.group if view.manifest is not None else None
        if group is not None:
            self._regrouped(view.path, {group: view.digests})
        return "the group file was written anew"

    def _entry_of(self, view: Judged) -> Judged | None:
        """The store's entry of a view, as it is now, where it is whole. A torn manifest leaves the names to tell it."""
        for known in self.judged:
            if known.stored and view.store_key in (None, known.store_key):
                entry = self.judge.directory(known.path, True)
                if entry is not None and entry.whole and entry.digests.keys() & view.files.keys():
                    return entry
        return None

    def _linked(self, view: Judged, entry: Judged) -> str:
        """File by file, so that a reader misses nothing: the contents are the same."""
        with self._aside(view.path) as aside:
            _link(entry, aside)
            if view.manifest is not None:
                write_group(aside, view.path, view.manifest.facts.group, view.digests)
            self._moved_in(aside, view.path)
        return f"linked to {entry.path}"

    def _renewed(self, one: Judged) -> str:
        """A manifest with the times that the files have now. That of the last use stays."""
        assert one.manifest is not None
        files = {}
        for name, sha256 in one.digests.items():
            files[name] = Published(one.files[name].st_size, one.files[name].st_mtime_ns, sha256)
        used = one.files[MANIFEST]
        with self._aside(one.path) as aside:
            write_manifest(aside, one.manifest._replace(files=files))
            os.utime(f"{aside}/{MANIFEST}", ns=(used.st_atime_ns, used.st_mtime_ns))
            if not one.stored:
                write_group(aside, one.path, one.manifest.facts.group, files)
            self._moved_in(aside, one.path)
        return "the manifest was written anew"

    # ---- stock Triton's

    def _stock(self, one: Judged) -> str:
        if one.spoiled:
            if any(abs(time.time() - found.st_mtime) < BUSY_S for found in one.files.values()):
                return "something in it is younger than two minutes: stock Triton, which locks nothing, may be at it"
            return self._put_away(one.path)
        wrong = [
            os.path.basename(flaw.subject) for flaw in one.flaws if flaw.code == "group-elsewhere"
        ]
        self._regrouped(
            one.path,
            {name.removeprefix(GROUP): read_group(f"{one.path}/{name}") or () for name in wrong},
        )
        return "the group file was written anew"

    # ---- how

    def _put_away(self, path: str) -> str:
        kept = quarantine(self.root, path)
        return (
            "moved to the quarantine"
            if kept
            else "removed: the quarantine is on another file system"
        )

    def _regrouped(self, directory: str, groups: Mapping[str, Iterable[str]]) -> None:
        with self._aside(directory) as aside:
            for filename, names in groups.items():
                write_group(aside, directory, filename, names)
            self._moved_in(aside, directory)

    @contextmanager
    def _aside(self, directory: str) -> Iterator[str]:
        aside = tempfile.mkdtemp(prefix=ASIDE, dir=os.path.dirname(directory))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _moved_in(self, aside: str, directory: str) -> None:
        """Rename each file to where it belongs; the manifest last: it says that all is in order."""
        for name in sorted(
            os.listdir(aside), key=lambda name: (name == MANIFEST, name.startswith(GROUP), name)
        ):
            target = f"{directory}/{name}"
            if os.path.isdir(target) and not os.path.islink(target):
                self._put_away(target)
            os.rename(f"{aside}/{name}", target)


def _link(one: Judged, target: str) -> None:
    for name in (*one.digests, MANIFEST):
        os.link(f"{one.path}/{name}", f"{target}/{name}", follow_symlinks=False)


def _linked_to(view: Judged, target: str) -> bool:
    """Whether all of a view could be linked to a directory, which is empty else."""
    try:
        _link(view, target)
    except OSError:
        for name in os.listdir(target):
            os.unlink(f"{target}/{name}")
        return False
    return True


def _has(view: Judged, entry: Judged) -> bool:
    """Whether a view has, whole, what the store's entry should have."""
    return not view.stored and view.whole and view.store_key == entry.store_key


def _alike(view: Judged, entry: Judged) -> bool:
    """Whether the view can have the entry's inodes, and nobody will notice."""
    same = (
        view.found is not None
        and entry.found is not None
        and view.found.st_dev == entry.found.st_dev
    )
    return same and view.digests == entry.digests
