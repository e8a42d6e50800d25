"""`KeyDirectories`: collects entries, strays and findings from many directories named after keys, during one scan."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpucache.disk.refusal import refusal
from gpucache.findings import Finding, repair_command
from gpucache.layout import paths
from gpucache.layout.keys import view_key
from gpucache.layout.paths import members_directory
from gpucache.report.directory_metadata import of_another_key
from gpucache.report.entries import Entry
from gpucache.report.entry_builder import EntryBuilder, is_tritons
from gpucache.report.inodes import Disk, Inode, Inodes, Sum
from gpucache.report.strays import Stray, StrayKind, kind_of, stray
from gpucache.store.foreign import Foreign, store_key_in, view_at
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    MOST_BYTES,
    Facts,
    read_manifest,
)
from gpucache.store.readers import is_read_by_others


class KeyDirectories:
    """What the key directories of one root have, as far as these were read.

    Read the store's directories before those of devices: a view is known by its manifest, which is the store's inode.
    Reads only; what vanishes meanwhile raises `FileNotFoundError`, and is no entry.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._members = members_directory(root)
        self.inodes = Inodes(self.unreadable)
        self.has_readers = is_read_by_others(root)
        self._closed: list[str] = []
        self._with_owners_parts = (root, paths.ours(root))
        """Where parts of a root that others may read are its owner's alone."""
        self.strays: list[Stray] = []
        self.findings: list[Finding] = []
        self._entries: dict[str, EntryBuilder] = {}
        self._by_manifest: dict[Inode, EntryBuilder] = {}

    def entries(self) -> tuple[Entry, ...]:
        """The entries of all directories that were read, in the order in which each was seen first."""
        builders = self._entries.values()
        entries = [builder.entry() for builder in builders]
        return tuple(entries)

    def read(self, path: str, device: str | None, known: Disk, total: Sum) -> None:
        """Read one key directory: the store's, a view of the store, or one of Triton's own.

        ``device`` is the name of the device directory, None for the store; ``known`` has the inodes of that file
        system, as `Inodes.disk` gives them; the files are counted into ``total``.

        Raises:
            OSError: the directory cannot be listed, or is gone.
        """
        files, new, directories = self.inodes.contents(path, known, total)
        for inode in new:
            if inode.is_link:
                self.link(path)
        for directory in directories:
            self.stray_name(directory)
            self.inodes.tree(directory, known, total)
        if CONDEMNED in files:
            self.stray("half-removed", path)
            return
        if not files and not directories:
            self.stray("empty", path)
            return
        new = self._without_temporaries(path, files, new)
        if not files:
            return
        is_ours = device is None or MANIFEST in files
        if is_ours or _is_tritons(files, directories):
            self._add_copy(path, device, files, new)

    def read_foreign(self, foreign: Foreign, key: str, known: Disk, total: Sum) -> None:
        """Read what a foreign directory has under a key, if that is a view of an entry of the store, or a copy of one.

        Raises:
            OSError: the directory cannot be listed, or is gone.
        """
        path = f"{foreign.path}/{key}"
        number = os.lstat(f"{path}/{MANIFEST}").st_ino
        inode = known.get(number)
        builder = None if inode is None else self._by_manifest.get(inode)
        store_key = builder.key if builder is not None else store_key_in(path, self.root) or key
        if view_key(store_key) != key:
            return
        if view_at(foreign, self.root, store_key) is not None:
            self.read(path, foreign.path, known, total)

    def _without_temporaries(
        self, path: str, files: dict[str, Inode], new: list[Inode]
    ) -> list[Inode]:
        """Take what a killed writer left out of ``files``, and return ``new`` without it."""
        temporaries = [name for name in files if kind_of(name) is not None]
        for name in temporaries:
            self.stray_name(f"{path}/{name}")
            gone = files.pop(name)
            new = [inode for inode in new if inode is not gone]
        return new

    def _add_copy(
        self, path: str, device: str | None, files: dict[str, Inode], new: list[Inode]
    ) -> None:
        """Add a key directory to its entry: the one with the same manifest, which views share, or with the same key."""
        manifest = files.get(MANIFEST)
        facts: Facts | None = None
        builder: EntryBuilder | None = None
        if manifest is not None:
            mark = manifest.number, manifest.mtime_ns
            builder = self._by_manifest.get(manifest)
        else:
            found = os.lstat(path)
            mark = found.st_ino, found.st_mtime_ns
        if builder is None:
            stored = device is None
            facts = self._facts(path, manifest, stored)
            key = os.path.basename(path)
            builder = self._builder(key, device, facts)
            if manifest is not None:
                self._by_manifest[manifest] = builder
        builder.add(path, device, files, new, mark, facts)

    def _builder(self, key: str, device: str | None, facts: Facts | None) -> EntryBuilder:
        if device is not None and facts is not None:
            key = facts.store_key(key)
        builder = self._entries.get(key)
        if builder is None:
            builder = self._entries[key] = EntryBuilder(key, self.has_readers)
        return builder

    def _facts(self, path: str, manifest: Inode | None, stored: bool) -> Facts | None:
        """Read what an entry's manifest says; None without a sound one.

        Raises:
            FileNotFoundError: the entry is being removed or replaced.
        """
        if manifest is None:
            if stored:
                self._manifest_missing(path)
            return None
        found = None
        if manifest.readable(MOST_BYTES):
            found = read_manifest(path)
        if found is not None:
            fact = of_another_key(path, found[0], stored)
            if fact is not None:
                self._finding("key-mismatch", path, fact, repair_command(self.root))
            return found[0].facts
        os.lstat(f"{path}/{MANIFEST}")  # else it was removed while we read it, which is no damage
        fact = f"{MANIFEST} cannot be understood"
        self._finding("manifest-torn", path, fact, repair_command(self.root))
        return None

    def _manifest_missing(self, path: str) -> None:
        for name in (MANIFEST, CONDEMNED):
            # The manifest was renamed while the directory was listed: a removal began, or gave way to a reader.
            if os.path.isfile(f"{path}/{name}"):
                raise FileNotFoundError(path)
        os.lstat(path)
        fact = f"a stored entry without {MANIFEST}"
        fix = repair_command(self.root)
        self._finding("manifest-missing", path, fact, fix)

    # ---- what else was found

    def stray(self, kind: StrayKind, path: str) -> None:
        """Add a stray to those that were found, unless it is gone by now."""
        found = stray(kind, path)
        if found is not None:
            self.strays.append(found)

    def stray_name(self, path: str) -> None:
        """Add what is a stray by its name to those that were found; pass over anything else."""
        kind = kind_of(os.path.basename(path))
        if kind is not None:
            self.stray(kind, path)

    def link(self, path: str) -> None:
        """Add the finding that there is a symbolic link at a path, or in the directory there."""
        self._finding("link", path, "a symbolic link in a cache is not followed", "remove it")

    def unreadable(self, path: str, error: OSError) -> None:
        """Add the finding that a path could not be read; another member's own directory is nobody else's to read.

        What a root that others may read has for its owner alone is told in one finding, of `closed`.
        """
        parent, name = os.path.split(path)
        if isinstance(error, PermissionError):
            if parent == self._members:
                return
            # What is shared of such a root is in these two: closed, they are a fault.
            is_owners = name not in ("triton", "gpucache") and parent in self._with_owners_parts
            if self.has_readers and is_owners:
                self._closed.append(name)
                return
        fact = error.strerror or str(error)
        fix = refusal(path, error, "look at").hint
        self._finding("unreadable", path, fact, fix)

    def closed(self) -> Iterator[Finding]:
        """The finding that parts of the root are for its owner alone, if there are any."""
        if self._closed:
            fact = (
                f"only its owner may read {', '.join(sorted(set(self._closed)))}: they are left out"
            )
            fix = "nothing has to be done: what the owner shares is read"
            yield Finding("unreadable", "warning", self.root, fact, fix)

    def _finding(self, code: str, subject: str, fact: str, fix: str) -> None:
        finding = Finding(code, "warning", subject, fact, fix)
        self.findings.append(finding)


def _is_tritons(files: dict[str, Inode], directories: list[str]) -> bool:
    others = []
    for path in directories:
        name = os.path.basename(path)
        if kind_of(name) is None:
            others.append(name)
    return is_tritons(files, others)
