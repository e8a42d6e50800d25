"""Remove one unit of another JIT cache, beside any process of its software.

A directory is renamed aside, beside itself, and then deleted: a reader finds all of it or none, and where its software
makes the directory before it takes the lock, an empty one. Files go one after
another, what leads to the others first. What its software is making stays: where it has a lock, that is taken, and a
lock whose mere existence counts is believed until nobody can have it any more. Killed at any instant, a unit is there,
or gone, or lies aside, where the next removal deletes it.

A running process has what it uses in memory. Left is an instant, between its look for a unit that was not used for the
grace and its opening of it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from contextlib import suppress

from gpucache.disk.within import Straight, open_directory
from gpucache.layout.jit_cache import JitCache
from gpucache.layout.keys import ASIDE
from gpucache.store.deletion import Deletion, Freed
from gpucache.store.jit_locks import held
from gpucache.store.jit_units import JitUnit, is_left_behind, measured_again
from gpucache.store.removal import InUse, refuse_mounts

LEAST_GRACE_S = 900.0
"""The shortest grace, whatever else is said: a build may write nothing for minutes while it compiles one file."""


def remove_unit(unit: JitUnit, cache: JitCache, mounted: Collection[str], disk: Straight) -> Freed:
    """Remove a unit, unless some of it was used since it was found, or its software holds its lock.

    Args:
        unit: as it was found.
        cache: the row of its cache.
        mounted: where file systems are mounted in the root (`disk.mounts.below`).
        disk: by which all is done.

    Raises:
        InUse: it is as it was; the message says why.
    """
    refuse_mounts([f"{unit.base}/{part}" for part in unit.parts], mounted)
    with held(unit, disk):
        _check_unchanged(unit, cache, disk)
        deletion = Deletion(disk)
        freed = Freed()
        for part in unit.parts:
            freed = freed.plus(_remove(f"{unit.base}/{part}", unit, deletion, disk))
    return freed


def sweep(staged: JitUnit, cache: JitCache, mounted: Collection[str], disk: Straight) -> Freed:
    """Delete what a killed writer, or a killed removal, has left.

    Raises:
        InUse: its writer has touched it since, or not all of it may be deleted by this user.
    """
    refuse_mounts([staged.path], mounted)
    now = measured_again(staged, cache, disk)
    if now is None:
        return Freed()
    is_aside = os.path.basename(staged.path).startswith(ASIDE)
    if not is_aside and not is_left_behind(now, time.time()):
        raise InUse("its writer is at it")
    return Deletion(disk).delete(staged.path)


def _check_unchanged(unit: JitUnit, cache: JitCache, disk: Straight) -> None:
    """Raise `InUse` if a unit was used or replaced since it was found, or could only be removed in part."""
    now = measured_again(unit, cache, disk)
    if now is None:
        return  # another process has removed it
    if now.is_closed:
        raise InUse(
            f"not all of it may be removed by uid {os.geteuid()} (it belongs to uid {now.uid})"
        )
    marks = [
        (one.files, one.logical_bytes, one.used, one.modified, one.inode) for one in (unit, now)
    ]
    if marks[0] != marks[1]:
        raise InUse("it was used or replaced meanwhile")


def _remove(path: str, unit: JitUnit, deletion: Deletion, disk: Straight) -> Freed:
    """Remove one part of a unit: a file at once, a directory by renaming it aside first."""
    try:
        # What unlink(2) says of a directory, and POSIX's.
        with suppress(IsADirectoryError, PermissionError):
            size = disk.lstat(path)
            disk.unlink(path)
            return Freed(1, size.st_size, size.st_size if size.st_nlink == 1 else 0)
        aside = f"{os.path.dirname(path)}/{ASIDE}{os.getpid()}-{time.time_ns():x}"
        if unit.keeps_directory and unit.kind is not None and unit.kind.lock_by == "flock":
            _move_content(path, aside, unit, disk)
        elif unit.keeps_directory:
            _replace(path, aside, disk)
        else:
            disk.rename(path, aside)
    except FileNotFoundError:
        return Freed()
    except OSError as error:
        raise InUse(error.strerror or str(error)) from error
    return deletion.delete(aside)


def _replace(path: str, aside: str, disk: Straight) -> None:
    """Rename a unit's directory aside, and put an empty one in its place at once (`JitUnit.keeps_directory`).

    A lock by existence cannot be taken meanwhile: who has waited for one does not build.
    """
    was = disk.lstat(path)
    empty = f"{aside}-empty"
    _make_like(was, empty, disk)
    try:
        disk.rename(path, aside)
        with suppress(OSError):  # its software has made one
            disk.rename(empty, path)
    finally:
        with suppress(OSError):
            disk.rmdir(empty)


def _make_like(was: os.stat_result, path: str, disk: Straight) -> None:
    """Make a directory with the mode of another, and of root's with its owner: other users build in it as before.

    The umask has no say, nor has what a default ACL would leave of a mode of 0700. Nobody else may write there then.
    """

    def change(here: int, name: str) -> None:
        fd = open_directory(here, name)
        try:
            if os.geteuid() == 0:
                os.fchown(fd, was.st_uid, was.st_gid)
            os.fchmod(fd, stat.S_IMODE(was.st_mode) & ~stat.S_IWOTH | stat.S_IRWXU)
        finally:
            os.close(fd)

    disk.mkdir(path)
    with suppress(OSError):  # a mount without modes
        disk.act(path, change)


def _move_content(path: str, aside: str, unit: JitUnit, disk: Straight) -> None:
    """Move all but the lock, which is held, out of a unit's directory (`JitUnit.keeps_directory` says why)."""
    _make_like(disk.lstat(path), aside, disk)
    for name in disk.listdir(path):
        inner = f"{path}/{name}"
        if inner != unit.lock_path:
            with suppress(FileNotFoundError):
                disk.rename(inner, f"{aside}/{name}")
