"""`Entry`: an entry of another root's store, the *fallback*, opened and read: nothing of it is believed by its name.

Each directory on the way and each file is vetted as it was opened (`disk.vetted`), and read to the size that the
manifest tells. Nothing is written there, and no lock is taken there.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress

from gpucache.disk import vetted
from gpucache.disk.door import HASHED_BYTES
from gpucache.disk.vetting import Trust
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.kernels.group import GROUP
from gpucache.layout.keys import STORE_KEY, view_key
from gpucache.store.manifest import (
    MANIFEST,
    MOST_BYTES,
    Manifest,
    entry_path,
    parse_manifest,
)
from gpucache.store.names import OURS, can_be_named
from gpucache.store.turn import Turn
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    Did = Literal["hit", "miss", "no-root", "same", "unsafe", "damaged", "unreadable", "disk"]
    """``hit``: the own store has the entry now; ``miss``: the fallback has it not, or no longer; ``no-root``: there is
    no such directory; ``same``: it is the own root; ``unsafe``: somebody who is not trusted owns or may write it;
    ``damaged``: it is no whole entry of this key, or does not fit here; ``unreadable``: this user may not read it, or
    the disk does not answer; ``disk``: the own store cannot take it."""

_PIECE_BYTES = 2**20
_NOT_THERE = (errno.ENOENT, errno.ESTALE)
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EINVAL)
"""What opening gives where a link, a directory, a device or a FIFO is in the place of a file."""


class Fallback(Value):
    """A root of which this user reads entries, and whom he trusts with what lies there."""

    root: str
    """An absolute path."""
    trust: Trust

    @classmethod
    def at(cls, root: str, trust: Trust) -> Fallback:
        """The fallback at a path; in a root of a group that this user has named, its members are trusted."""
        return cls(root, trust.in_root(root))


class Away(Exception):
    """The entry cannot be had of the fallback."""

    def __init__(self, did: Did, said: str = "") -> None:
        super().__init__(did, said)
        self.did: Did = did
        self.said = said


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raise `Away` where the fallback refuses something in a ``with`` block, in which nothing else is done."""
    try:
        yield
    except UnsafeDirectoryError as error:
        raise Away("unsafe", error.problem) from None
    except ProvisionError as error:
        raise Away("unreadable", error.problem) from None
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise Away("miss") from None
        if error.errno in _NO_FILE:
            raise Away("damaged", f"{path}: it is no regular file") from None
        raise Away("unreadable", f"{path}: {os.strerror(error.errno or errno.EIO)}") from None


@contextmanager
def opened_entry(
    fallback: Fallback, root: str, store_key: str, turn: Turn
) -> Iterator[Entry | None]:
    """The directory of an entry in a fallback, open; None where no key of the store is asked for.

    ``root`` is the own root, which is no fallback of its own. Raises `Away` where the entry cannot be had.
    """
    if not STORE_KEY.fullmatch(store_key):
        yield None
        return
    below = entry_path("", store_key).split("/")[1:]
    with opened(fallback, root, below, turn) as (fd, path):
        yield Entry(fd, path, store_key, fallback.trust, turn)


@contextmanager
def opened(
    fallback: Fallback, root: str, below: Sequence[str], turn: Turn
) -> Iterator[tuple[int, str]]:
    """The descriptor and the path of a directory below a fallback, each on the way vetted as it was opened.

    ``below`` are the names that lead to it; ``turn`` is told of each that was opened. Raises as `opened_entry`.
    """
    fd = _open_root(fallback, root)
    path = fallback.root
    try:
        for name in below:
            path = f"{path}/{name}"
            with reading(path):
                inner = vetted.open_child(fd, name, path, fallback.trust)
            os.close(fd)
            fd = inner
            turn.beat()
        yield fd, path
    finally:
        os.close(fd)


def _open_root(fallback: Fallback, root: str) -> int:
    with reading(fallback.root):
        if not os.path.lexists(fallback.root):
            raise Away("no-root", f"there is no {fallback.root}")
        fd = vetted.open_directory(fallback.root, fallback.trust)
    with suppress(OSError):
        if os.path.samestat(os.fstat(fd), os.stat(root)):
            os.close(fd)
            raise Away("same", f"{fallback.root} is the root itself")
    return fd


class Entry:
    """An entry of a fallback, whose directory is open."""

    def __init__(self, fd: int, path: str, store_key: str, trust: Trust, turn: Turn) -> None:
        self.fd = fd
        self.path = path
        self.store_key = store_key
        self.trust = trust
        self.turn = turn

    def manifest(self) -> Manifest:
        """The manifest, if it is one of this key that can be copied.

        Raises:
            Away: there is none, or one of something else.
        """
        data = b"".join(self.pieces(MANIFEST, MOST_BYTES))
        manifest = parse_manifest(data)
        if manifest is None:
            raise self.damaged(f"its {MANIFEST} cannot be understood")
        key = view_key(self.store_key)
        if manifest.key != key or manifest.facts.store_key(key) != self.store_key:
            raise self.damaged("its manifest is that of another key")
        facts = manifest.facts
        if facts.group is None and list(manifest.listed) != [facts.kernel]:
            raise self.damaged("it stands for a file that it has not, or for several")
        for name in manifest.listed:
            if name in OURS or name.startswith(GROUP) or not can_be_named(name):
                raise self.damaged("a file of it has a name that no entry has here")
        if sum(published.size_bytes for published in manifest.files.values()) > HASHED_BYTES:
            raise self.damaged("its files are longer than any kernel's")
        return manifest

    def pieces(self, name: str, most_bytes: int, size_bytes: int | None = None) -> Iterator[bytes]:
        """The content of a file as it is read, of ``size_bytes``, where that is known.

        Raises:
            Away: the file cannot be had, or has another size.
        """
        path = f"{self.path}/{name}"
        with reading(path):
            fd, found = vetted.open_file(self.fd, name, path, self.trust)
        try:
            wanted = found.st_size if size_bytes is None else size_bytes
            if found.st_size != wanted or wanted > most_bytes:
                raise self.damaged(f"{name} has another size than was published")
            left = wanted
            while left:
                with reading(path):
                    piece = os.read(fd, min(left, _PIECE_BYTES))
                self.turn.beat()
                if not piece:
                    raise self.damaged(f"{name} was cut meanwhile")
                left -= len(piece)
                yield piece
        finally:
            os.close(fd)

    def damaged(self, fact: str) -> Away:
        """The error for an entry that is not what it should be."""
        return Away("damaged", f"{self.path}: {fact}")
