"""`StagedEntry`: one entry of a pack while its files come, in a private directory that becomes the entry itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpucache.archive.statement import ArchivedEntry, ArchivedFile
from gpucache.disk.door import METADATA_BYTES
from gpucache.disk.files import remove_tree
from gpucache.disk.sharing import new_file
from gpucache.kernels.elf import HEAD_BYTES, is_whole
from gpucache.kernels.metadata import identity_in
from gpucache.layout.keys import is_key_of
from gpucache.store.manifest import MANIFEST, RECIPE, Manifest, Published, write_manifest
from gpucache.store.placing import set_use
from gpucache.store.publish import publish_directory


class StagedEntry:
    """An entry whose files are written into ``directory``, a private one. Used by one thread."""

    def __init__(self, entry: ArchivedEntry, directory: str) -> None:
        self.entry = entry
        self.directory = directory
        self.was_faster = False
        """Whether, once `publish` has returned True, another process had put the entry there before."""
        self._files: dict[str, Published] = {}
        self._recipe: str | None = None
        self._left = len(entry.members)
        self._looked_at = bytearray()
        """Of a kernel its metadata file, of a library the beginning."""
        self._manifest: Manifest | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all files of the entry were written."""
        return self._left == 0

    @property
    def published_bytes(self) -> int:
        """What the entry takes in the store."""
        assert self._manifest is not None
        return self.entry.size_bytes + len(self._manifest.encoded())

    def write(self, file: ArchivedFile, pieces: Iterator[bytes]) -> None:
        """Write a file as its pieces come; they are checked by whoever gives them.

        Raises:
            BadPack: they are not what the statement says.
            OSError: the disk refused.
        """
        path = f"{self.directory}/{file.name}"
        looked_at = self._looked_at_bytes(file)
        fd = new_file(path, os.O_WRONLY)
        try:
            for piece in pieces:
                missing = looked_at - len(self._looked_at)
                if missing > 0:
                    self._looked_at += piece[:missing]
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        self._left -= 1
        if file.name == RECIPE:
            self._recipe = file.sha256
            return
        # By path and after the closing: a network file system sets the time then.
        found = os.stat(path)
        self._files[file.name] = Published(found.st_size, found.st_mtime_ns, file.sha256)

    def _looked_at_bytes(self, file: ArchivedFile) -> int:
        """How much of a file `contradiction` has to see."""
        if file.name == self.entry.facts.group:
            return METADATA_BYTES
        return HEAD_BYTES if self.entry.kind == "library" else 0

    def contradiction(self) -> str | None:
        """In what the files contradict what the statement says of the entry; None where they agree."""
        if self.entry.kind == "kernel":
            return self._unlike_metadata()
        if self.entry.kind == "library":
            head = bytes(self._looked_at)
            return None if is_whole(head, self.entry.size_bytes) else "the library is not whole"
        return None

    def _unlike_metadata(self) -> str | None:
        facts = self.entry.facts
        try:
            found = identity_in(bytes(self._looked_at))
        except ValueError as error:
            return str(error)
        if not is_key_of(self.entry.key, found.hash or ""):
            return "its metadata are those of another key"
        if found.target != facts.target:
            return f"its metadata tell of another target, {found.target}"
        version = found.triton_version
        if version is not None and version != facts.triton_version:  # 3.2 does not say it
            return f"its metadata tell of another Triton, {version}"
        return None

    def complete(self, used: float | None = None) -> None:
        """Write the manifest, with which the directory is a whole entry, last used when ``used`` says, or now.

        Raises:
            OSError: the disk refused.
        """
        entry = self.entry
        self._manifest = Manifest(entry.facts, self._files, None, entry.key, recipe=self._recipe)
        write_manifest(self.directory, self._manifest)
        # Before it is in its place: once it is there, a reader may stamp it.
        if used is not None:
            set_use(f"{self.directory}/{MANIFEST}", round(used * 1e9))

    def publish(self, root: str, repair: bool) -> bool:
        """Let the completed directory become the entry of the store, as `publish_directory`.

        Raises:
            OSError: the disk refused.
        """
        assert self._manifest is not None
        names = [*self._files, MANIFEST, RECIPE]
        key = self.entry.store_key
        if not publish_directory(root, key, self.directory, self._manifest, repair, names):
            return False
        self.was_faster = os.path.lexists(f"{self.directory}/{MANIFEST}")
        return True

    def remove(self) -> None:
        """Remove what is left of the staged directory; nothing, as a rule, once the entry was published."""
        if os.path.lexists(self.directory):
            remove_tree(self.directory)
