"""`StagedUnit`: one unit of TorchInductor's while its files come, in a private directory until they get their names."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from gpucache.archive.inductor import flaw_in
from gpucache.archive.statement import ArchivedEntry, ArchivedFile
from gpucache.disk.files import remove_tree
from gpucache.disk.members import make_base
from gpucache.disk.within import Straight
from gpucache.store.inductor_placing import new_beside_torchs, place
from gpucache.store.removal import InUse


class StagedUnit:
    """A unit whose files are written into ``directory``, a private one below the root. Used by one thread.

    As `gpucache.archive.staged_entry.StagedEntry`, but that the files get their names one by one.
    """

    published_bytes = 0
    """What the unit takes in the store: its files are beside that."""

    def __init__(self, entry: ArchivedEntry, directory: str) -> None:
        self.entry = entry
        self.directory = os.path.realpath(directory)
        self.was_faster = False
        """Whether, once `publish` has returned True, all files had been there before."""
        self.obstacle = ""
        """Why `publish` has returned False."""
        self._paths: dict[str, str] = {}

    @property
    def is_whole(self) -> bool:
        """Whether all files of the unit were written."""
        return len(self._paths) == len(self.entry.files)

    def write(self, file: ArchivedFile, pieces: Iterator[bytes]) -> None:
        """Write a file as its pieces come; they are checked by whoever gives them.

        Raises:
            BadPack: they are not what the statement says.
            OSError: the disk refused.
        """
        path = f"{self.directory}/{len(self._paths)}"
        with open(new_beside_torchs(path), "wb") as out:
            for piece in pieces:
                out.write(piece)
        self._paths[file.name] = path

    def contradiction(self) -> str | None:
        """Why torch would fail of the files, for whose being there alone it looks; None where that is not known.

        Raises:
            OSError: a file cannot be read.
        """
        for name, path in self._paths.items():
            flaw = flaw_in(name, path)
            if flaw is not None:
                return f"{name} {flaw}"
        return None

    def complete(self, used: float | None = None) -> None:
        """Have the files count as last used when ``used`` says, in seconds since the epoch, if that is not now."""
        if used is not None:
            for path in self._paths.values():
                os.utime(path, (used, used))

    def publish(self, root: str, repair: bool) -> bool:
        """Let the files have their names below a root, as `gpucache.store.inductor_placing.place`; nothing is repaired.

        Returns whether they have them now; not while torch, or whoever removes, holds the lock of this code, nor where
        a link or a file is in the place of a directory: `obstacle` says so.

        Raises:
            OSError: the disk refused.
        """
        try:
            with Straight() as disk:
                base = make_base(os.path.realpath(root)) or os.path.realpath(root)
                placed = place(base, self.entry.store_key, self._paths, disk)
        except InUse as error:
            self.obstacle = str(error)
            return False
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            self.obstacle = f"{error.filename} is a link, or no directory"
            return False
        self.was_faster = placed == "there"
        return True

    def remove(self) -> None:
        """Remove the staged directory; what has its name below the root stays."""
        if os.path.lexists(self.directory):
            remove_tree(self.directory)
