"""Take an entry away, whole, and never from under a reader: condemn, look, rename, delete.

What makes the entry's directories an entry, their manifests, is renamed first, so that nobody takes it for a hit any
more; only if no use was stamped until then do the directories follow. A reader stamps a use by the manifest's name
(`store.sound`), so that one of the two always sees the other. What a killed removal leaves is no entry to anybody, and
a stray to the next one. No link is followed.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple

from gpucache.disk.locks import holder
from gpucache.kernels.group import GROUP
from gpucache.layout.keys import KEY
from gpucache.store.key_lock import KeyLock
from gpucache.store.manifest import CONDEMNED, MANIFEST, read_manifest, single_key
from gpucache.store.quarantine import ASIDE

_count = itertools.count()


class Target(NamedTuple):
    """A directory of an entry, as it was when the removal was planned."""

    path: str
    mark: tuple[int, int]
    """Inode and modification time (ns) of its manifest; of the directory itself where that is stock Triton's."""
    ours: bool
    """Whether it has a manifest."""


class Freed(NamedTuple):
    """What a deletion removed."""

    files: int = 0
    logical_bytes: int = 0
    physical_bytes: int = 0
    """Without the files that have links elsewhere."""

    def plus(self, other: Freed) -> Freed:
        """The sum."""
        return Freed(*map(sum, zip(self, other, strict=True)))

    def minus(self, other: Freed) -> Freed:
        """The difference."""
        return Freed(*(ours - theirs for ours, theirs in zip(self, other, strict=True)))


NOTHING = Freed()


class InUse(Exception):
    """The entry was used since, is being compiled, or cannot be removed; its message says which."""


def remove(key: str, places: Sequence[Target], locks: str | None) -> list[Freed]:
    """Remove an entry; what was freed in each of its places.

    Beside any number of readers, writers and removers. ``locks`` is the root's directory of locks, or None where it has
    none. Killed at any instant, the entry is there or not, and nothing else is touched.

    Raises:
        InUse: it is as it was.
    """
    with taken(key, places, locks) as asides:
        pass
    deletion = _Deletion()
    return [deletion.delete(aside) for aside in asides]


@contextmanager
def taken(key: str, places: Sequence[Target], locks: str | None) -> Iterator[list[str]]:
    """The entry's directories under other names beside them, in the order of ``places``, with the key's lock held.

    They are put back when the block raises, except where something else is in their place by then, which stays;
    otherwise they are the caller's to delete.

    Raises:
        InUse: it is as it was.
    """
    # our caller's, for it is there as long as the block
    lock = _locked(key, locks, sys._getframe(2))
    try:
        hidden = _condemn(places)
        asides = [_beside(place.path) for place in places]
        try:
            for place, aside in zip(places, asides, strict=True):
                _set_aside(place.path, aside)
            yield asides
        except BaseException:
            for place, aside in zip(places, asides, strict=True):
                _put_back(aside, place.path)
            _restore(hidden)
            raise
    except OSError as error:
        raise InUse(f"{error.filename}: {error.strerror}") from error
    finally:
        if lock is not None:
            lock.release()


def refuse_mounts(paths: Iterable[str], points: Iterable[str]) -> None:
    """What is mounted somewhere below (``points`` are those of `mounts.points`) is another's, whatever it is called.

    Raises:
        InUse: something is.
    """
    for path in paths:
        if any(point == path or point.startswith(f"{path}/") for point in points):
            raise InUse(f"{path}: something is mounted in it")


def finish(path: str, modified: float, locks: str | None) -> Freed:
    """Complete a removal that was killed after it had condemned a directory, of this modification time; what it freed.

    Beside any number of readers, writers and removers.

    Raises:
        InUse: somebody has done something with it since.
    """
    lock = _locked(_key_of(path), locks, sys._getframe())
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_mtime != modified:
            raise InUse("it was used or replaced meanwhile")
        # one that lost to a reader was killed before it had put all back
        if os.path.lexists(f"{path}/{MANIFEST}"):
            os.unlink(f"{path}/{CONDEMNED}")
            raise InUse("it is an entry again")
        if _group(path) is not None and _was_group(path):  # stock Triton has compiled it again
            os.unlink(f"{path}/{CONDEMNED}")
            raise InUse("it is an entry again")
        aside = _beside(path)
        _set_aside(path, aside)
    except OSError as error:
        raise InUse(f"{error.filename}: {error.strerror}") from error
    finally:
        if lock is not None:
            lock.release()
    return delete(aside)


def _was_group(path: str) -> bool:
    """Whether what is condemned there is stock Triton's own group."""
    with open(f"{path}/{CONDEMNED}", "rb") as file:
        return b'"child_paths"' in file.read(64)


def _key_of(path: str) -> str:
    """The key, as in the store, of a condemned directory."""
    key = os.path.basename(path)
    with suppress(OSError):
        found = read_manifest(path, CONDEMNED)
        if found is not None and found[0].facts.group is None and KEY.fullmatch(key):
            return single_key(key, found[0].facts.kernel, found[0].facts.tag)
    return key


def _locked(key: str, locks: str | None, frame: FrameType) -> KeyLock | None:
    if locks is None:
        return None
    lock = KeyLock(f"{locks}/{key}.lock")
    try:
        if lock.try_acquire(frame, "its removal"):
            return lock
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not os.path.lexists(lock.path):
            return None  # nobody has it, and nobody can: a full disk must not forbid to make room
        raise InUse(f"{lock.path}: {error.strerror}") from error
    raise InUse(f"it is locked by {holder(lock.path)}")


def _condemn(places: Sequence[Target]) -> list[tuple[str, str]]:
    """Hide what makes the directories an entry, and then see whether anybody was faster; what is hidden, and where."""
    hidden: list[tuple[str, str]] = []
    try:
        for place in places:
            _check_unchanged(place)
            name = MANIFEST if place.ours else _group(place.path)
            if name is not None:
                hidden.append((place.path, name))
                os.rename(f"{place.path}/{name}", f"{place.path}/{CONDEMNED}")
        for place in places:
            if place.ours and os.lstat(f"{place.path}/{CONDEMNED}").st_mtime_ns != place.mark[1]:
                # overlayfs may have given it another inode
                raise InUse("it was used or replaced meanwhile")
        # Triton's own becomes ours when it is used
        shown = [*hidden, *((place.path, MANIFEST) for place in places)]
        if any(os.path.lexists(f"{directory}/{name}") for directory, name in shown):
            raise InUse("it was used or replaced meanwhile")
    except BaseException:
        _restore(hidden)
        raise
    return hidden


def _check_unchanged(place: Target) -> None:
    directory = os.lstat(place.path)
    found = os.lstat(f"{place.path}/{MANIFEST}") if place.ours else directory
    if not stat.S_ISDIR(directory.st_mode) or (found.st_ino, found.st_mtime_ns) != place.mark:
        raise InUse("it was used or replaced meanwhile")


def _group(directory: str) -> str | None:
    """The file by which Triton's own manager knows that a kernel is whole."""
    return min((name for name in os.listdir(directory) if name.startswith(GROUP)), default=None)


def _restore(hidden: Iterable[tuple[str, str]]) -> None:
    for directory, name in hidden:
        with suppress(OSError):  # not condemned yet, or gone
            if os.path.lexists(f"{directory}/{name}"):  # somebody has written it anew
                os.unlink(f"{directory}/{CONDEMNED}")
            else:
                os.rename(f"{directory}/{CONDEMNED}", f"{directory}/{name}")


def _beside(path: str) -> str:
    return f"{os.path.dirname(path)}/{ASIDE}removed-{time.time_ns():x}.{os.getpid()}.{next(_count)}"


def _set_aside(path: str, aside: str) -> None:
    """Rename a directory; file by file where it is in an image's layer, of which overlayfs refuses that (``EXDEV``)."""
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.mkdir(aside, 0o700)
        for name in os.listdir(path):
            os.rename(f"{path}/{name}", f"{aside}/{name}")
        os.rmdir(path)


def _put_back(aside: str, path: str) -> None:
    try:
        os.rename(aside, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was faster
            delete(aside)


# ---- deleting

_DIRECTORY = (
    os.O_RDONLY
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


def delete(path: str) -> Freed:
    """Delete a file, or a directory with all that is in it; what that freed. Links are deleted, not followed.

    Beside any other process that deletes the same: what is gone counts nothing. What may not be deleted stays.
    """
    return _Deletion().delete(path)


class _Deletion:
    """What is deleted in one go. Of an inode with several names only the first is asked for its size and links."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], list[int]] = {}
        self._freed = [0, 0, 0]

    def delete(self, path: str) -> Freed:
        """As the function of this name."""
        self._freed = [0, 0, 0]
        self._delete(path, None)
        return Freed(*self._freed)

    def _delete(self, name: str, parent: int | None) -> None:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                self._unlink(name, parent, None)
            return
        try:
            device = os.fstat(fd).st_dev
            with os.scandir(fd) as items:
                for item in items:
                    if item.is_dir(follow_symlinks=False):
                        self._delete(item.name, fd)
                    else:
                        self._unlink(item.name, fd, (device, item.inode()))
        finally:
            os.close(fd)
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)

    def _unlink(self, name: str, parent: int | None, inode: tuple[int, int] | None) -> None:
        try:
            known = self._links.get(inode) if inode is not None else None
            if known is None:
                found = os.lstat(name, dir_fd=parent)
                known = [found.st_size, found.st_nlink]
            os.unlink(name, dir_fd=parent)
        except OSError:
            return
        size = known[0]
        known[1] -= 1
        if inode is not None and known[1]:
            self._links[inode] = known
        elif inode is not None:
            self._links.pop(inode, None)  # the number may be used again
        self._freed[0] += 1
        self._freed[1] += size
        self._freed[2] += size if not known[1] else 0
