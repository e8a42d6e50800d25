"""`repair`: repairs the directories of one key that `verify` has found damaged, under the key's lock.

Nothing is rewritten in place, and whole files are kept. What one sound copy of an entry has, the others get as hard
links; what nobody has goes to the quarantine, and the next process compiles it again. New files are made aside and
renamed to where they belong, so that a process that is killed leaves the old one or the new one, and a reader that has
a path finds a file of the same content there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress

from gpucache.disk.capabilities import is_refusal
from gpucache.disk.sharing import Modes, modes_for, modes_like, new_aside
from gpucache.disk.within import Straight, remove_tree_in
from gpucache.kernels.group import GROUP, read_group, write_group
from gpucache.report.flaws import Flaw
from gpucache.report.judge import Judge
from gpucache.report.judged import Judged
from gpucache.store.deletion import delete
from gpucache.store.manifest import MANIFEST, RECIPE, Published, read_manifest, write_manifest
from gpucache.store.placing import hand_over, link_or_copy, put, renew_times, set_use
from gpucache.store.publish import link_view
from gpucache.store.quarantine import quarantine
from gpucache.store.recipe_file import read_recipe, recipe_digest, share_manifest
from gpucache.store.stock import BUSY_S

LEFT = "links are not followed, and not removed"


def repair(
    root: str, judge: Judge, judged: Sequence[Judged], bad: Set[Flaw], disk: Straight
) -> dict[str, str]:
    """Repair the directories of one key that have a flaw in ``bad``; tell by path what was done, or why nothing was.

    Beside any readers, and writers that honour the key's lock, which the caller holds. Killed at any instant, each
    entry is whole, as damaged as before, or gone. Follows no link.
    """
    work = _Repairing(root, judge, judged, disk)
    outcomes = {}
    for one in judged:
        if bad & set(one.flaws):
            outcomes[one.path] = work.outcome(one)
    return outcomes


class _Repairing:
    """The repair of one key's directories. The store's come first: its views are made again from them."""

    def __init__(self, root: str, judge: Judge, judged: Sequence[Judged], disk: Straight) -> None:
        self.root = root
        self.judge = judge
        self.judged = judged
        self.disk = disk

    def outcome(self, damaged: Judged) -> str:
        """Repair one directory, and tell what was done, or why nothing was."""
        if damaged.codes <= {"link"}:
            return LEFT
        if "unreadable" in damaged.codes:
            return "what cannot be read is left alone"
        try:
            if damaged.stored:
                return self._repair_entry(damaged)
            if damaged.ours:
                return self._repair_view(damaged)
            return self._repair_stock(damaged)
        except OSError as error:
            return f"{error.filename or damaged.path}: {os.strerror(error.errno or 0)}"

    # ---- the store first

    def _repair_entry(self, entry: Judged) -> str:
        if "recipe-damaged" in entry.codes and not entry.spoiled:
            return self._drop_recipe(entry)
        if not entry.spoiled:
            return self._renew_manifest(entry)
        parent, key = os.path.split(entry.path)
        with self._aside(entry.path) as (name, aside), self.disk.held(parent) as beside:
            source = self._fill_from_a_view(entry, aside, os.stat(beside))
            put_away = self._put_away(entry.path)
            if source is None or not put(f"{beside}/{name}", f"{beside}/{key}", locked=True):
                return put_away
            share_manifest(entry.path, self.disk)
            return f"made again from {source}"

    def _drop_recipe(self, entry: Judged) -> str:
        """Remove a recipe that is of no use, and let no manifest tell of it; a launch brings another one."""
        self._renew_manifest(entry)
        share_manifest(entry.path, self.disk)
        delete(f"{entry.path}/{RECIPE}", self.disk)
        return "the recipe was removed: the entry gets another one when it is taken from the store"

    def _fill_from_a_view(self, entry: Judged, aside: str, owner: os.stat_result) -> str | None:
        """Fill a directory with all of an entry, from the first view that has it whole; return that view's path.

        What root has made goes to the ``owner`` of the directory above.
        """
        for view in self.judged:
            if not _has(view, entry):
                continue
            with self.disk.held(view.path) as source:
                copied = _filled_from(view, source, aside)
                if copied is not None:
                    copied += self._given_recipe(entry, aside)
                    _hand_over(aside, copied, owner)
                    return view.path
        return None

    def _given_recipe(self, entry: Judged, aside: str) -> list[str]:
        """Give what is made again of a view the recipe of the damaged entry, or a manifest that tells of none.

        Returns the names of the files that were written, and not linked.
        """
        if "not-a-directory" in entry.codes:
            return _given_recipe(aside, None)
        with self.disk.held(entry.path) as damaged:
            return _given_recipe(aside, damaged)

    # ---- then its views

    def _repair_view(self, view: Judged) -> str:
        entry = self._entry_of(view)
        if view.spoiled:
            return self._replace_view(view, entry)
        is_copied = bool(view.codes & {"view-apart", "times-changed"})
        if is_copied and entry is not None and _alike(view, entry):
            try:
                return self._link_to(view, entry)
            except OSError as error:
                if not is_refusal(error):
                    raise
                if "times-changed" not in view.codes:
                    return f"the copies stay: {os.strerror(error.errno or 0)}"
        if "times-changed" in view.codes:
            return self._renew_manifest(view)
        if view.manifest is not None:
            group = view.manifest.facts.group
            if group is not None:
                groups = {group: view.digests}
                self._write_groups(view.path, groups)
        return "the group file was written anew"

    def _replace_view(self, view: Judged, entry: Judged | None) -> str:
        """Put away a view that is of no use, and make the view again where its entry is whole; tell what was done."""
        put_away = self._put_away(view.path)
        if entry is None or entry.manifest is None:
            return put_away
        parent = os.path.dirname(view.path)
        with self.disk.held(entry.path) as source, self.disk.held(parent) as beside:
            linked = link_view(self.root, source, view.path, entry.manifest, False, beside)
        return f"made again from {entry.path}" if linked else put_away

    def _entry_of(self, view: Judged) -> Judged | None:
        """Find the whole entry of a view in the store, as it is now. Where no manifest tells the key, the names do."""
        for known in self.judged:
            if not known.stored:
                continue
            if view.store_key not in (None, known.store_key):
                continue
            entry = self.judge.directory(known.path, True)
            if entry is None or not entry.whole:
                continue
            shared = entry.digests.keys() & view.files.keys()
            if shared:
                return entry
        return None

    def _link_to(self, view: Judged, entry: Judged) -> str:
        """Give a view the entry's inodes, file by file, so that a reader misses nothing: the contents are the same."""
        with self._aside(view.path) as (_, aside):
            with self.disk.held(entry.path) as source:
                for name in (*entry.digests, MANIFEST):
                    os.link(f"{source}/{name}", f"{aside}/{name}", follow_symlinks=False)
            if view.manifest is not None:
                group = view.manifest.facts.group
                write_group(aside, view.path, group, view.digests)
                self._hand_over(aside, view.path, (f"{GROUP}{group}",))
            self._move_in(aside, view.path)
        return f"linked to {entry.path}"

    def _renew_manifest(self, copied: Judged) -> str:
        """Write a manifest with the times that the files have now. That of the last use stays."""
        assert copied.manifest is not None
        files = {}
        for name, sha256 in copied.digests.items():
            found = copied.files[name]
            files[name] = Published(found.st_size, found.st_mtime_ns, sha256)
        used = copied.files[MANIFEST]
        with self._aside(copied.path) as (_, aside):
            renewed = copied.manifest._replace(listed=files)
            if "recipe-damaged" in copied.codes:
                renewed = renewed._replace(recipe=None)
            write_manifest(aside, renewed)
            set_use(f"{aside}/{MANIFEST}", used.st_mtime_ns)
            if not copied.stored:
                group = copied.manifest.facts.group
                write_group(aside, copied.path, group, files)
            self._hand_over(aside, copied.path, os.listdir(aside))
            self._move_in(aside, copied.path)
        return "the manifest was written anew"

    # ---- stock Triton's

    def _repair_stock(self, damaged: Judged) -> str:
        if damaged.spoiled:
            if _is_young(damaged):
                return "something in it is younger than two minutes: stock Triton, which locks nothing, may be at it"
            return self._put_away(damaged.path)
        groups: dict[str, Iterable[str]] = {}
        for flaw in damaged.flaws:
            if flaw.code == "group-elsewhere":
                group_file = os.path.basename(flaw.subject)
                filename = group_file.removeprefix(GROUP)
                groups[filename] = read_group(flaw.subject) or ()
        self._write_groups(damaged.path, groups)
        return "the group file was written anew"

    # ---- how

    def _put_away(self, path: str) -> str:
        kept = quarantine(self.root, path, self.disk)
        if kept:
            return "moved to the quarantine"
        return "removed: the quarantine is on another file system"

    def _write_groups(self, directory: str, groups: Mapping[str, Iterable[str]]) -> None:
        """Write groups that name the files of this directory: each group's name, with the names of its files."""
        with self._aside(directory) as (_, aside):
            for filename, names in groups.items():
                write_group(aside, directory, filename, names)
            self._hand_over(aside, directory, os.listdir(aside))
            self._move_in(aside, directory)

    @contextmanager
    def _aside(self, directory: str) -> Iterator[tuple[str, str]]:
        """Make an empty directory beside this one; after the block it is gone, unless it was renamed.

        Gives its name, and a path that leads to nothing else.
        """
        parent = os.path.dirname(directory)
        with self.disk.held(parent) as beside:
            name = os.path.basename(new_aside(beside, _modes_of(directory)))
        aside = f"{parent}/{name}"
        try:
            with self.disk.held(aside) as path:
                yield name, path
        finally:
            with suppress(OSError):
                self.disk.act(aside, remove_tree_in)

    def _hand_over(self, aside: str, directory: str, names: Iterable[str]) -> None:
        """Give files that were made aside to the owner of the directory to which they go, where that is root's work."""
        with self.disk.directory(directory) as fd:
            owner = os.fstat(fd)
        _hand_over(aside, names, owner)

    def _move_in(self, aside: str, directory: str) -> None:
        """Rename each file to where it belongs; the manifest last, since it says that all is in order."""
        names = os.listdir(aside)
        with self.disk.held(directory) as target:
            for name in sorted(names, key=_when_moved):
                self._move_one_in(f"{aside}/{name}", f"{target}/{name}", directory)

    def _move_one_in(self, source: str, target: str, directory: str) -> None:
        is_link = os.path.islink(target)
        if os.path.isdir(target) and not is_link:
            self._put_away(f"{directory}/{os.path.basename(target)}")
        os.rename(source, target)


def _modes_of(directory: str) -> Modes:
    """The modes of what is to join what is in a directory, or to take its place."""
    return modes_like(directory) if os.path.isdir(directory) else modes_for(directory)


def _when_moved(name: str) -> tuple[bool, bool, str]:
    """Sort names of files so: first what was compiled, then groups, then the manifest."""
    return name == MANIFEST, name.startswith(GROUP), name


def _is_young(damaged: Judged) -> bool:
    """Whether something in a directory changed so lately that stock Triton may still be writing it."""
    now = time.time()
    changes = [found.st_mtime for found in damaged.files.values()]
    return any(abs(now - change) < BUSY_S for change in changes)


def _hand_over(held: str, names: Iterable[str], owner: os.stat_result) -> None:
    """Give a directory that was made aside to an owner; ``held`` is a path that leads to nothing else."""
    here = os.open(held, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        hand_over(here, names, owner)
    finally:
        os.close(here)


def _filled_from(view: Judged, source: str, target: str) -> list[str] | None:
    """Link or copy all files of a view to a directory; the names of the files that were made, and not linked.

    ``source`` is a path of the view that leads to nothing else. None where that cannot be: the directory is empty.
    """
    made = []
    try:
        for name in (*view.digests, MANIFEST):
            if not link_or_copy(f"{source}/{name}", f"{target}/{name}"):
                made.append(name)
        if renew_times(target, target):
            made.append(MANIFEST)
    except OSError:
        for name in os.listdir(target):
            os.unlink(f"{target}/{name}")
        return None
    return made


def _given_recipe(new: str, damaged: str | None) -> list[str]:
    """As the method; ``new`` and ``damaged`` are paths that lead to nothing else.

    Raises:
        OSError: the disk refused.
    """
    found = read_manifest(new)
    if found is None or recipe_digest(found[0]) is None:
        return []
    manifest, used = found
    if damaged is not None and read_recipe(damaged, manifest) is not None:
        return [] if link_or_copy(f"{damaged}/{RECIPE}", f"{new}/{RECIPE}") else [RECIPE]
    os.unlink(f"{new}/{MANIFEST}")  # it is the view's, too
    write_manifest(new, manifest._replace(recipe=None))
    set_use(f"{new}/{MANIFEST}", round(used * 1e9))
    return [MANIFEST]


def _has(view: Judged, entry: Judged) -> bool:
    """Whether a view has, whole, what the store's entry should have."""
    if view.stored or not view.whole:
        return False
    return view.store_key == entry.store_key


def _alike(view: Judged, entry: Judged) -> bool:
    """Whether a view can be given the inodes of an entry: both lie on one disk and have the same contents."""
    if view.found is None or entry.found is None:
        return False
    if view.found.st_dev != entry.found.st_dev:
        return False
    return view.digests == entry.digests
