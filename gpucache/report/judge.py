"""What is wrong with the directories of one key, as values. Reads only: no lock, no stamp, no link followed.

The digests are in our own manifests; of what stock Triton cached, a byte that was flipped cannot be told.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from gpucache.disk.mounts import file_system
from gpucache.disk.reading import digest, listing, read
from gpucache.kernels.group import GROUP, STANDALONE, read_group
from gpucache.report.file_checks import complaint, no_file
from gpucache.report.flaws import Flaw, Judged
from gpucache.store.manifest import CONDEMNED, MANIFEST, Manifest, Published, parse_manifest

# Where two names can surely have one inode; elsewhere copies may be all that there can be.
_LINKING = {
    "btrfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "lustre",
    "nfs",
    "nfs4",
    "overlay",
    "tmpfs",
    "xfs",
    "zfs",
}


class Judge:
    """Judges directories. What it has read of an inode it remembers, so that hard links are read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[str, tuple[str, str] | None]] = {}
        self._same: dict[tuple[str, str], bool] = {}
        self._linking: dict[int, bool] = {}

    def key(self, stored: Sequence[str], others: Sequence[str]) -> list[Judged]:
        """All directories of one of Triton's keys: the store's, and those in device directories; the store's first."""
        entries = [found for path in stored if (found := self.directory(path, True)) is not None]
        views = [found for path in others if (found := self.directory(path, False)) is not None]
        return entries + [self._beside(view, entries) for view in views]

    def directory(self, path: str, stored: bool) -> Judged | None:
        """One directory by itself; None for what is no entry: gone, empty or half removed."""
        judged = Judged(path=path, stored=stored)
        try:
            found, files = listing(path)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return replace(
                judged,
                flaws=(Flaw("not-a-directory", path, "a file is in its place", (0, _inode(path))),),
            )
        except OSError as error:
            return replace(
                judged, flaws=(Flaw("unreadable", path, os.strerror(error.errno or 0), (0, 0)),)
            )
        if not files or CONDEMNED in files:
            return None
        look, manifest = _Look(path, found, files), None
        if stored or MANIFEST in files:
            manifest = self._ours(look, stored)
        else:
            self._stock(look)
        return replace(judged, found=found, files=files, manifest=manifest, flaws=tuple(look.flaws))

    # ---- ours

    def _ours(self, look: _Look, stored: bool) -> Manifest | None:
        manifest = look.manifest()
        if manifest is not None:
            group = manifest.facts.group
            for name, published in manifest.files.items():
                self._published(look, name, published, metadata=name == group)
            if not stored and group is not None:
                self._group(look, group, manifest.files.keys())
        told = {flaw.subject for flaw in look.flaws}
        for name in look.links():
            if f"{look.path}/{name}" not in told:
                look.flaw("link", name, "it is not followed")
        return manifest

    def _published(self, look: _Look, name: str, published: Published, metadata: bool) -> None:
        if (why := no_file(look.files.get(name))) is not None:
            look.flaw("file-missing", name, why)
            return
        there = look.files[name]
        if there.st_size != published.size_bytes:
            fact = f"it has {there.st_size} bytes, not {published.size_bytes}"
            look.flaw("digest-mismatch", name, fact)
            return
        try:
            found, wrong = self._content(look, name, metadata)
        except OSError as error:
            look.refused(name, error)
            return
        if found != published.sha256:
            fact = f"SHA-256 is {found[:16]}…, and was published as {published.sha256[:16]}…"
            look.flaw("digest-mismatch", name, fact)
        elif wrong is not None:
            look.flaw(wrong[0], name, wrong[1])
        elif there.st_mtime_ns != published.mtime_ns:
            look.flaw("times-changed", name, "its time is not the published one, its digest is")

    def _content(
        self, look: _Look, name: str, metadata: bool
    ) -> tuple[str, tuple[str, str] | None]:
        """SHA-256, and what is wrong with the file by itself."""
        path, inode = f"{look.path}/{name}", _state(look.files[name])
        if inode not in self._known:
            wrong = complaint(path, metadata, name.endswith((".cubin", ".so")))
            sha256, after = digest(path)
            if _state(after) != inode:  # what is known of an inode is believed of all its names
                raise FileNotFoundError(errno.ENOENT, "it was replaced meanwhile", path)
            self._known[inode] = sha256, wrong
        return self._known[inode]

    def _beside(self, view: Judged, entries: Sequence[Judged]) -> Judged:
        """What only the store's entry tells: a manifest that is gone, a copy that could be a hard link."""
        if view.found is None:
            return view
        mark = (view.found.st_ino, 0)
        if not view.ours:
            taken = {
                _identity(found)
                for entry in entries
                for name, found in entry.files.items()
                if name != MANIFEST
            }
            if any(_identity(found) in taken for found in view.files.values()):
                fact = "its files are the store's, and it has none"
                return replace(
                    view, flaws=(Flaw("manifest-missing", f"{view.path}/{MANIFEST}", fact, mark),)
                )
        elif view.whole and any(self._could_be_linked(view, entry) for entry in entries):
            fact = "it has copies of what the store has, and could have hard links"
            return replace(view, flaws=(*view.flaws, Flaw("view-apart", view.path, fact, mark)))
        return view

    def _could_be_linked(self, view: Judged, entry: Judged) -> bool:
        if (
            not entry.whole
            or view.digests != entry.digests
            or view.found is None
            or entry.found is None
        ):
            return False
        apart = any(view.files[name].st_ino != entry.files[name].st_ino for name in view.digests)
        device = view.found.st_dev
        if apart and device == entry.found.st_dev and device not in self._linking:
            self._linking[device] = file_system(view.path) in _LINKING
        return apart and device == entry.found.st_dev and self._linking[device]

    # ---- stock Triton's

    def _stock(self, look: _Look) -> None:
        links = look.links()
        for name in links:
            look.flaw("link", name, "it is not followed, and its directory not judged")
        if links:
            return
        grouped: set[str] = set()
        for name in look.files:
            if name.startswith(GROUP):
                grouped |= self._group(look, name.removeprefix(GROUP), None)
        for name in look.files:
            if name.endswith(STANDALONE) and name not in grouped:
                self._single(look, name)

    def _group(self, look: _Look, filename: str, wanted: Set[str] | None) -> set[str]:
        """A group file and, of stock Triton's, its files; their names. ``wanted`` is what one of ours must name."""
        name = f"{GROUP}{filename}"
        try:
            children = None if no_file(look.files.get(name)) else read_group(f"{look.path}/{name}")
        except OSError as error:
            look.refused(name, error)
            return set()
        if children is None or (
            children.keys() != wanted if wanted is not None else filename not in children
        ):
            fact = (
                no_file(look.files.get(name))
                or "it does not parse, or does not name what belongs to the kernel"
            )
            look.flaw("group-torn", name, fact)
            return set()
        if wanted is None:
            self._children(look, filename, children)
        elsewhere = [
            path for child, path in children.items() if not self._names(path, look.path, child)
        ]
        if elsewhere and not any(no_file(look.files.get(child)) for child in children):
            where = os.path.dirname(elsewhere[0]).encode(errors="replace").decode()
            look.flaw("group-elsewhere", name, f"it names files in {where}")
        return set(children)

    def _children(self, look: _Look, filename: str, children: Mapping[str, str]) -> None:
        for name in children:
            if (why := no_file(look.files.get(name))) is not None:
                look.flaw("group-dangling", name, why)
            else:
                self._checked(look, name, name == filename)

    def _single(self, look: _Look, name: str) -> None:
        if (why := no_file(look.files[name])) is not None:
            look.flaw("file-missing", name, why)
        else:
            self._checked(look, name, False)

    def _checked(self, look: _Look, name: str, metadata: bool) -> None:
        try:
            wrong = complaint(f"{look.path}/{name}", metadata, True)
        except OSError as error:
            look.refused(name, error)
            return
        if wrong is not None:
            look.flaw(wrong[0], name, wrong[1])

    def _names(self, path: str, directory: str, child: str) -> bool:
        """Whether a path in a group is that of the child in this directory, maybe by way of links above it."""
        parent, name = os.path.split(path)
        if name != child or parent == directory:
            return name == child
        if not os.path.isabs(path):  # `TRITON_CACHE_DIR` was relative, to we do not know what
            below = "/".join(
                part for part in os.path.normpath(parent).split("/") if part not in ("..", ".")
            )
            return directory.endswith(f"/{below}")
        if (parent, directory) not in self._same:
            try:
                # a mount may give it two names
                self._same[parent, directory] = os.path.samefile(parent, directory)
            except (OSError, ValueError):  # gone, or no path at all: a null byte
                self._same[parent, directory] = False
        return self._same[parent, directory]


class _Look:
    """A directory that is being judged."""

    def __init__(
        self, path: str, found: os.stat_result, files: Mapping[str, os.stat_result]
    ) -> None:
        self.path, self.found, self.files = path, found, files
        self.flaws: list[Flaw] = []

    def flaw(self, code: str, name: str, fact: str) -> None:
        inode = self.files[name].st_ino if name in self.files else 0
        self.flaws.append(Flaw(code, f"{self.path}/{name}", fact, (self.found.st_ino, inode)))

    def refused(self, name: str, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # which the next look will find missing
            self.flaw("unreadable", name, os.strerror(error.errno or 0))

    def manifest(self) -> Manifest | None:
        if (why := no_file(self.files.get(MANIFEST))) is not None:
            self.flaw("manifest-missing", MANIFEST, why)
            return None
        try:
            found = parse_manifest(read(f"{self.path}/{MANIFEST}"))
        except OSError as error:
            self.refused(MANIFEST, error)
            return None
        if found is None:
            self.flaw("manifest-torn", MANIFEST, "it cannot be understood")
        return found

    def links(self) -> list[str]:
        return [name for name, found in self.files.items() if stat.S_ISLNK(found.st_mode)]


def _state(found: os.stat_result) -> tuple[int, ...]:
    """What stays the same as long as a file's content does."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0
