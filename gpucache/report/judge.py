"""`Judge`: makes every check of the directories of one key as a whole, for `verify` and `explain`.

The checks of a single file are in `file_checks`. Reads only: no lock, no stamp, no link followed.

The digests are in the manifests of gpucache; of what stock Triton cached, a byte that was flipped cannot be told.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace

from gpucache.disk.capabilities import may_link
from gpucache.disk.reading import listing, read_stated
from gpucache.kernels.group import GROUP, STANDALONE, grouped_names, read_group
from gpucache.layout.paths import root_of_stored
from gpucache.report.directory_metadata import of_another_key
from gpucache.report.file_checks import Examined, damage_of_recipe, examine, examine_stock, no_file
from gpucache.report.flaws import NO_MARK, Flaw, FlawCode
from gpucache.report.group_paths import GroupPaths
from gpucache.report.judged import Judged
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    RECIPE,
    Manifest,
    Published,
    is_rounded,
    parse_manifest,
)

_State = tuple[int, int, int, int, int]


class Judge:
    """Finds all flaws of key directories. A file that was read is remembered by its inode: hard links are read once.

    One thread at a time.
    """

    def __init__(self) -> None:
        self._examined: dict[_State, Examined] = {}
        self._manifests: dict[_State, Manifest] = {}
        self._paths = GroupPaths()
        self._linking: dict[tuple[str, str], bool] = {}
        """Whether files of a directory can be hard links to those of another, by the two directories."""

    def key(self, stored: Sequence[str], others: Sequence[str]) -> list[Judged]:
        """Judge all directories of one of Triton's keys: first the store's, then those in device directories."""
        entries = self._directories(stored, stored=True)
        views = []
        for view in self._directories(others, stored=False):
            views.append(self._beside(view, entries))
        return entries + views

    def _directories(self, paths: Sequence[str], stored: bool) -> list[Judged]:
        found = []
        for path in paths:
            judged = self.directory(path, stored)
            if judged is not None:
                found.append(judged)
        return found

    def forget(self) -> None:
        """Forget the files that were read, before the next key, which has files of its own."""
        self._examined.clear()
        self._manifests.clear()

    def directory(self, path: str, stored: bool) -> Judged | None:
        """Judge one directory by itself; None for what is no entry: gone, empty or half removed."""
        try:
            found, files = listing(path)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            mark = (0, _inode(path))
            flaw = Flaw("not-a-directory", path, "a file is in its place", mark)
            return _not_listed(flaw, stored)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            flaw = Flaw("unreadable", path, why, NO_MARK)
            return _not_listed(flaw, stored)
        if not files or CONDEMNED in files:
            return None
        look = _Look(path, found, files)
        manifest = None
        if stored or MANIFEST in files:
            manifest = self._judge_ours(look, stored)
        else:
            self._judge_stock(look)
        return Judged(
            path=path,
            stored=stored,
            found=found,
            files=files,
            manifest=manifest,
            flaws=tuple(look.flaws),
        )

    # ---- entries and views of gpucache

    def _judge_ours(self, look: _Look, stored: bool) -> Manifest | None:
        manifest = self._manifest(look)
        if manifest is not None:
            fact = of_another_key(look.path, manifest, stored)
            if fact is not None:
                look.flaw("key-mismatch", MANIFEST, fact)
            group = manifest.facts.group
            for name, published in manifest.files.items():
                is_metadata = name == group
                self._judge_published(look, name, published, is_metadata)
            if stored:
                fact = damage_of_recipe(look.path, manifest)
                if fact is not None:
                    look.flaw("recipe-damaged", RECIPE, fact)
            elif group is not None:
                wanted = manifest.files.keys()
                self._judge_group(look, group, wanted)
        told = {flaw.subject for flaw in look.flaws}
        for name in look.links():
            if f"{look.path}/{name}" not in told:
                look.flaw("link", name, "it is not followed")
        return manifest

    def _manifest(self, look: _Look) -> Manifest | None:
        why = no_file(look.files.get(MANIFEST))
        if why is not None:
            look.flaw("manifest-missing", MANIFEST, why)
            return None
        listed = _state(look.files[MANIFEST])
        known = self._manifests.get(listed)
        if known is not None:
            return known
        try:
            data, state = read_stated(f"{look.path}/{MANIFEST}")
        except OSError as error:
            look.refused(MANIFEST, error)
            return None
        manifest = parse_manifest(data)
        if manifest is None:
            look.flaw("manifest-torn", MANIFEST, "it cannot be understood")
        else:
            self._manifests[_state(state)] = manifest
        return manifest

    def _judge_published(
        self, look: _Look, name: str, published: Published, is_metadata: bool
    ) -> None:
        there = look.files.get(name)
        why = no_file(there)
        if there is None or why is not None:
            look.flaw("file-missing", name, why or "")
            return
        if there.st_size != published.size_bytes:
            fact = f"it has {there.st_size} bytes, not {published.size_bytes}"
            look.flaw("digest-mismatch", name, fact)
            return
        try:
            examined = self._examine(look, name, is_metadata)
        except OSError as error:
            look.refused(name, error)
            return
        found = examined.sha256
        wrong = examined.wrong
        if found != published.sha256:
            fact = f"SHA-256 is {found[:16]}…, and was published as {published.sha256[:16]}…"
            look.flaw("digest-mismatch", name, fact)
        elif wrong is not None:
            look.flaw(wrong.code, name, wrong.fact)
        elif not _is_time_of(there, published):
            look.flaw("times-changed", name, "its time is not the published one, its digest is")

    def _examine(self, look: _Look, name: str, is_metadata: bool) -> Examined:
        """Read a file, unless this inode, in this state, was read by another name.

        Raises:
            FileNotFoundError: another file is there than the one that was listed.
            OSError: it cannot be read.
        """
        state = _state(look.files[name])
        known = self._examined.get(state)
        if known is not None:
            return known
        path = f"{look.path}/{name}"
        examined = examine(path, is_metadata)
        after = _state(examined.found)
        if after != state:  # what is known of an inode is believed of all its names
            raise FileNotFoundError(errno.ENOENT, "it was replaced meanwhile", path)
        self._examined[state] = examined
        return examined

    # ---- views beside their entry

    def _beside(self, view: Judged, entries: Sequence[Judged]) -> Judged:
        """Add the flaws that only the store's entry shows: no manifest, or copies that could be hard links."""
        if view.found is None:
            return view
        mark = (view.found.st_ino, 0)
        if view.ours:
            if not self._has_linkable_copies(view, entries):
                return view
            fact = "it has copies of what the store has, and could have hard links"
            flaw = Flaw("view-apart", view.path, fact, mark)
            return replace(view, flaws=(*view.flaws, flaw))
        if not _has_files_of(view, entries):
            return view
        fact = "its files are the store's, and it has none"
        flaw = Flaw("manifest-missing", f"{view.path}/{MANIFEST}", fact, mark)
        return replace(view, flaws=(flaw,))

    def _has_linkable_copies(self, view: Judged, entries: Sequence[Judged]) -> bool:
        """Whether a view that is whole has copies of an entry's files where it could have hard links to them."""
        if not view.whole:
            return False
        return any(self._could_be_linked(view, entry) for entry in entries)

    def _could_be_linked(self, view: Judged, entry: Judged) -> bool:
        if view.found is None or entry.found is None:
            return False
        if not entry.whole or view.digests != entry.digests:
            return False
        if view.found.st_dev != entry.found.st_dev:
            return False
        if not _are_apart(view, entry):
            return False
        root = root_of_stored(entry.path)
        places = (os.path.dirname(view.path), root)
        if places not in self._linking:
            self._linking[places] = may_link(root, *places)
        return self._linking[places]

    # ---- stock Triton's

    def _judge_stock(self, look: _Look) -> None:
        links = look.links()
        for name in links:
            look.flaw("link", name, "it is not followed, and its directory not judged")
        if links:
            return
        grouped: set[str] = set()
        for filename in grouped_names(look.files):
            children = self._judge_group(look, filename, None)
            grouped.update(children)
        for name in look.files:
            if name.endswith(STANDALONE) and name not in grouped:
                self._judge_stock_file(look, name, "file-missing", is_metadata=False)

    def _judge_group(self, look: _Look, filename: str, wanted: Set[str] | None) -> Collection[str]:
        """Judge a group file, and of stock Triton's also its files; returns the names in it.

        ``wanted`` is what the group of a view must name; None for one of stock Triton's.
        """
        name = f"{GROUP}{filename}"
        why = no_file(look.files.get(name))
        try:
            children = read_group(f"{look.path}/{name}") if why is None else None
        except OSError as error:
            look.refused(name, error)
            return ()
        if children is None or not _names_what_it_should(children, filename, wanted):
            fact = "it does not parse, or does not name what belongs to the kernel"
            look.flaw("group-torn", name, why or fact)
            return ()
        if wanted is None:
            for child in children:
                is_metadata = child == filename
                self._judge_stock_file(look, child, "group-dangling", is_metadata)
        where = self._paths.elsewhere(children, look.path)
        if where is not None and look.has_all(children):
            shown = where.encode(errors="replace").decode()
            look.flaw("group-elsewhere", name, f"it names files in {shown}")
        return children.keys()

    def _judge_stock_file(
        self, look: _Look, name: str, if_missing: FlawCode, is_metadata: bool
    ) -> None:
        why = no_file(look.files.get(name))
        if why is not None:
            look.flaw(if_missing, name, why)
            return
        try:
            wrong = examine_stock(f"{look.path}/{name}", is_metadata)
        except OSError as error:
            look.refused(name, error)
            return
        if wrong is not None:
            look.flaw(wrong.code, name, wrong.fact)


class _Look:
    """A directory while it is judged: its files as they were listed, and the flaws found so far."""

    def __init__(
        self, path: str, found: os.stat_result, files: Mapping[str, os.stat_result]
    ) -> None:
        self.path = path
        self.found = found
        self.files = files
        self.flaws: list[Flaw] = []

    def flaw(self, code: FlawCode, name: str, fact: str) -> None:
        found = self.files.get(name)
        inode = 0 if found is None else found.st_ino
        mark = (self.found.st_ino, inode)
        flaw = Flaw(code, f"{self.path}/{name}", fact, mark)
        self.flaws.append(flaw)

    def refused(self, name: str, error: OSError) -> None:
        """Tell that a file cannot be read; not of one that is gone, which the next look will find missing."""
        if not isinstance(error, FileNotFoundError):
            why = os.strerror(error.errno or 0)
            self.flaw("unreadable", name, why)

    def links(self) -> list[str]:
        files = self.files.items()
        return [name for name, found in files if stat.S_ISLNK(found.st_mode)]

    def has_all(self, names: Iterable[str]) -> bool:
        for name in names:
            found = self.files.get(name)
            if no_file(found) is not None:
                return False
        return True


def _not_listed(flaw: Flaw, stored: bool) -> Judged:
    """Tell of the one flaw that a directory has which cannot be listed."""
    return Judged(path=flaw.subject, stored=stored, flaws=(flaw,))


def _names_what_it_should(
    children: Mapping[str, str], filename: str, wanted: Set[str] | None
) -> bool:
    if wanted is None:
        return filename in children
    return children.keys() == wanted


def _is_time_of(found: os.stat_result, published: Published) -> bool:
    """Whether a file has the time that was published, as far as its file system keeps times."""
    if found.st_mtime_ns == published.mtime_ns:
        return True
    return is_rounded(found.st_mtime_ns, published.mtime_ns)


def _are_apart(view: Judged, entry: Judged) -> bool:
    """Whether a view has a file of its own where its entry has the same content."""
    for name in view.digests:
        inode = entry.files[name].st_ino
        if view.files[name].st_ino != inode:
            return True
    return False


def _has_files_of(view: Judged, entries: Sequence[Judged]) -> bool:
    """Whether a view has a hard link to a file of an entry, the manifest aside."""
    stored = set()
    for entry in entries:
        for name, found in entry.files.items():
            if name != MANIFEST:
                stored.add(_identity(found))
    return any(_identity(found) in stored for found in view.files.values())


def _state(found: os.stat_result) -> _State:
    """What stays the same as long as a file's content does."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0
