"""Take an entry away, whole, and never from under a reader: condemn, look, rename, delete.

What makes the entry's directories an entry, their manifests, is renamed first, so that nobody takes it for a hit any
more; only if no use was stamped until then do the directories follow. A reader stamps a use by the manifest's name
(`store.lookup.find`), so that one of the two always sees the other. What a killed removal leaves is no entry to
anybody, and a stray to the next one. No link is followed.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from gpucache.disk.capabilities import is_refusal
from gpucache.disk.locks import holder
from gpucache.disk.within import Straight
from gpucache.kernels.group import GROUP, begins_as_group, group_files
from gpucache.layout.keys import ASIDE, KEY
from gpucache.store import key_lock
from gpucache.store.deletion import Deletion, Freed, delete
from gpucache.store.manifest import CONDEMNED, MANIFEST, read_manifest

_count = itertools.count()
_USED = "it was used or replaced meanwhile"


class Target(NamedTuple):
    """A directory of an entry, as it was when the removal was planned."""

    path: str
    mark: tuple[int, int]
    """Inode and modification time (ns) of its manifest; of the directory itself where that is stock Triton's."""
    ours: bool
    """Whether it has a manifest."""


class InUse(Exception):
    """The entry was used since, is being compiled, or cannot be removed; its message says which.

    Raised and caught among what removes; a plan that is carried out tells it as skipped.
    """


def remove(
    key: str, targets: Sequence[Target], locks: str | None, disk: Straight | None = None
) -> list[Freed]:
    """Remove an entry from all of its directories; return what was freed in each.

    Beside any number of readers, writers and removers. ``locks`` is the root's directory of locks, or None where it has
    none. ``disk`` is for whoever removes many entries. Killed at any instant, the entry is there or not, and nothing
    else is touched.

    Raises:
        InUse: the entry is as it was.
    """
    with Straight() as own:
        disk = disk or own
        with taken(key, targets, locks, disk) as asides:
            pass
        deletion = Deletion(disk)
        return [deletion.delete(aside) for aside in asides]


@contextmanager
def taken(
    key: str, targets: Sequence[Target], locks: str | None, disk: Straight
) -> Iterator[list[str]]:
    """Rename an entry's directories for the length of a ``with`` block, with the key's lock held.

    Gives the new paths, beside the old ones and in the order of ``targets``. When the block raises, the directories get
    their names again, except where something else has such a name by then, which stays; otherwise the caller deletes
    the directories.

    Raises:
        InUse: the entry is as it was.
    """
    with _locked(key, locks, disk), _told_as_in_use():
        hidden = _condemn(targets, disk)
        asides = [_beside(target.path) for target in targets]
        try:
            for target, aside in zip(targets, asides, strict=True):
                _set_aside(target.path, aside, disk)
            yield asides
        except BaseException:
            # The directories first: a manifest is shown again only where its files are.
            for target, aside in zip(targets, asides, strict=True):
                _put_back(aside, target.path, disk)
            _restore(hidden, disk)
            raise


def refuse_mounts(paths: Iterable[str], points: Iterable[str]) -> None:
    """Refuse directories in or below which something is mounted: that belongs to somebody else, whatever its name.

    ``points`` are those of `mounts.points`.

    Raises:
        InUse: something is mounted there.
    """
    points = list(points)
    for path in paths:
        for point in points:
            if point == path or point.startswith(f"{path}/"):
                raise InUse(f"{path}: something is mounted in it")


def finish(path: str, modified: float, locks: str | None, disk: Straight) -> Freed:
    """Complete a removal that was killed after it had condemned a directory; return what was freed.

    ``modified`` is the directory's modification time when the caller saw that it was condemned.

    Beside any number of readers, writers and removers.

    Raises:
        InUse: another process has done something with the directory since.
    """
    with _told_as_in_use():
        key = _key_of(path, disk)
    with _locked(key, locks, disk), _told_as_in_use():
        found = disk.lstat(path)
        is_directory = stat.S_ISDIR(found.st_mode)
        if not is_directory or found.st_mtime != modified:
            raise InUse(_USED)
        # A removal that lost to a reader was killed before it had put all back.
        shown = disk.lexists(f"{path}/{MANIFEST}")
        # Stock Triton has compiled it again.
        grouped = _group_file(path, disk) is not None and _was_group(path, disk)
        if shown or grouped:
            disk.unlink(f"{path}/{CONDEMNED}")
            raise InUse("it is an entry again")
        aside = _beside(path)
        _set_aside(path, aside, disk)
    return delete(aside, disk)


def put_back(path: str, locks: str | None, disk: Straight) -> None:
    """Make a condemned directory an entry again, since the removal was killed before it had condemned all others.

    Raises:
        InUse: another process is at it, or the disk refuses.
    """
    with _told_as_in_use():
        key = _key_of(path, disk)
    with _locked(key, locks, disk):
        _restore([(path, MANIFEST)], disk)


@contextmanager
def _told_as_in_use() -> Iterator[None]:
    """Raise `InUse` where the disk refuses something in the ``with`` block, which leaves the entry as it was."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InUse(f"{error.filename} is, or is behind, a symbolic link") from error
        raise InUse(f"{error.filename}: {error.strerror}") from error


def _key_of(path: str, disk: Straight) -> str:
    """The key under which the store has the entry of a condemned directory, and under which its lock is."""
    key = os.path.basename(path)
    with suppress(OSError), disk.directory(path) as here:
        found = read_manifest(path, CONDEMNED, here)
        if found is not None and KEY.fullmatch(key):
            facts = found[0].facts
            return facts.store_key(key)
    return key


@contextmanager
def _locked(key: str, locks: str | None, disk: Straight) -> Iterator[None]:
    """Hold the lock of a key for the length of a block, if the root has locks.

    Raises:
        InUse: another process holds the lock, or its file cannot be made or opened.
    """
    if locks is None:
        yield
        return
    path = f"{locks}/{key}.lock"
    with ExitStack() as stack:
        try:
            held = stack.enter_context(key_lock.holding(path, "its removal", disk))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or disk.lexists(path):
                raise InUse(f"{path}: {error.strerror}") from error
            held = True  # nobody has it, and nobody can: a full disk must not forbid to make room
        if not held:
            raise InUse(f"it is locked by {holder(path)}")
        yield


def _condemn(targets: Sequence[Target], disk: Straight) -> list[tuple[str, str]]:
    """Hide what makes the directories an entry, and then see whether another process was faster.

    Returns the directory and the name of each file that is hidden now, for `_restore`.

    Raises:
        InUse: another process was faster; nothing is hidden.
    """
    hidden: list[tuple[str, str]] = []
    try:
        # All are hidden before the stamps are looked at: views share one manifest, and a reader stamps it by the name
        # that it has in his directory. Only once it has that name nowhere can no stamp come after the look.
        for target in targets:
            _check_unchanged(target, disk)
            name = MANIFEST if target.ours else _group_file(target.path, disk)
            if name is not None:
                hidden.append((target.path, name))
                disk.rename(f"{target.path}/{name}", f"{target.path}/{CONDEMNED}")
        for target in targets:
            # The time alone: overlayfs may have given the renamed file another inode.
            if not target.ours:
                continue
            condemned = disk.lstat(f"{target.path}/{CONDEMNED}")
            if condemned.st_mtime_ns != target.mark[1]:
                raise InUse(_USED)
        # A writer, or a reader that renewed what it had read before, may have shown the entry again; and what was
        # stock Triton's gets a manifest of ours when it is used.
        shown = {f"{directory}/{name}" for directory, name in hidden}
        shown |= {f"{target.path}/{MANIFEST}" for target in targets}
        for path in shown:
            if disk.lexists(path):
                raise InUse(_USED)
    except BaseException:
        _restore(hidden, disk)
        raise
    return hidden


def _check_unchanged(target: Target, disk: Straight) -> None:
    """Raise `InUse` if a directory, or the use of its entry, is not as it was when the removal was planned."""
    directory = disk.lstat(target.path)
    marked = disk.lstat(f"{target.path}/{MANIFEST}") if target.ours else directory
    mark = (marked.st_ino, marked.st_mtime_ns)
    is_directory = stat.S_ISDIR(directory.st_mode)
    if not is_directory or mark != target.mark:
        raise InUse(_USED)


def _group_file(directory: str, disk: Straight) -> str | None:
    """The name of a directory's group file, the first one of several; None where there is none."""
    names = disk.listdir(directory)
    return min(group_files(names), default=None)


def _was_group(directory: str, disk: Straight) -> bool:
    """Whether what is condemned in a directory is a group file, and no manifest."""
    with disk.directory(directory) as here:
        return begins_as_group(CONDEMNED, here)


def _restore(hidden: Iterable[tuple[str, str]], disk: Straight) -> None:
    """Give hidden files their names again, unless another process has written such a file anew."""
    for directory, name in hidden:
        with suppress(OSError):  # not condemned yet, or gone
            if disk.lexists(f"{directory}/{name}"):
                disk.unlink(f"{directory}/{CONDEMNED}")
            else:
                disk.rename(f"{directory}/{CONDEMNED}", f"{directory}/{name}")


def _beside(path: str) -> str:
    """A new path beside a directory, to which it is renamed before it is deleted."""
    name = f"{ASIDE}removed-{time.time_ns():x}.{os.getpid()}.{next(_count)}"
    return f"{os.path.dirname(path)}/{name}"


def _set_aside(path: str, aside: str, disk: Straight) -> None:
    """Rename a directory; file by file where directories cannot be renamed (object stores, an image's layer)."""
    try:
        disk.rename(path, aside)
    except OSError as error:
        if not is_refusal(error):
            raise
        _move_files(path, aside, disk)


def _put_back(aside: str, path: str, disk: Straight) -> None:
    """Give a directory that was set aside its name again; delete it where another writer has made a new one."""
    try:
        disk.rename(aside, path)
    except OSError as error:
        if not is_refusal(error):
            return
        try:
            _move_files(aside, path, disk)
        except FileExistsError:
            delete(aside, disk)
        except OSError:
            return  # it stays aside, whole


def _move_files(source: str, target: str, disk: Straight) -> None:
    """Rename all that is in a directory to a new directory; on failure, what was renamed is renamed back.

    What condemns the directory comes last, so that the next removal completes one that is killed between two files;
    and a group comes first, so that stock Triton does not read one of which files are gone.

    Raises:
        OSError: the disk refused; `FileExistsError`: ``target`` is there.
    """
    names = disk.listdir(source)
    names.sort(key=lambda name: (name == CONDEMNED, not name.startswith(GROUP)))
    disk.mkdir(target)
    moved: list[str] = []
    try:
        for name in names:
            disk.rename(f"{source}/{name}", f"{target}/{name}")
            moved.append(name)
        disk.rmdir(source)
    except BaseException:
        for name in reversed(moved):
            with suppress(OSError):
                disk.rename(f"{target}/{name}", f"{source}/{name}")
        with suppress(OSError):
            disk.rmdir(target)
        raise
