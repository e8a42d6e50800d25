"""Private directories for unfinished files, one per process: a directory whose lock is free is a dead process's.

A process holds its directory under ``flock`` until it ends, however it ends. Whoever sweeps tries that lock instead of
guessing from a pid, which lies across containers and is used again. Only this user's directories are swept, and in a
root that a group shares those of its members.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import lru_cache

from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import STALE_S, make_directory, remove_tree, write_new
from gpucache.disk.locks import can_be_asked, is_free_descriptor, let_go
from gpucache.disk.node import DAY_S, is_locked_here, mark_of, node_id
from gpucache.disk.sharing import PRIVATE, Modes, modes_in, set_directory_mode
from gpucache.disk.vetting import is_groups
from gpucache.forks import after_fork, at_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PREFIX = "staging-"
_NEW = "new-"
PREFIXES = (f"gpucache-{_PREFIX}", f"gpucache-{_NEW}")
"""How the names of staging directories begin: of those that are locked by now, and of those that are not yet."""


class Staging:
    """New private directories and files of this process: below the preferred directory, else where it is possible."""

    def __init__(self, preferred: str) -> None:
        self.preferred = preferred
        # A signal handler of the program may launch a kernel while this very thread stages one.
        self._mutex = threading.RLock()
        self._made: dict[str, tuple[str, int]] = {}
        """By place: this process's own directory there, and the descriptor that holds its lock."""
        self._numbers = itertools.count(1)
        _all.append(self)

    def directory(self) -> str:
        """Make a new empty directory below the preferred place; return its path.

        Raises:
            OSError: nothing can be made there.
        """
        return self._new_below(self.preferred)

    def write(self, name: str, data: bytes, usable: Callable[[str], bool]) -> str:
        """Write a file of this name in the first place that takes the file whole; return the file's path.

        ``usable`` may refuse a place: one mounted ``noexec``, for a shared library.

        Raises:
            OSError: no place takes the file; the message names all of them.
        """
        failures = []
        for place in _candidates(self.preferred):
            try:
                if place != self.preferred and _is_open_to_all(place):
                    failures.append(f"{place} (everybody may replace what is there)")
                elif usable(place):
                    return self._write_below(place, name, data)
                else:
                    failures.append(f"{place} (mounted noexec)")
            except OSError as error:
                failures.append(f"{place} ({error.strerror or error})")
        reasons = ", ".join(failures)
        said = f"{name} of {len(data)} bytes can be written nowhere: {reasons}"
        raise OSError(errno.ENOSPC, said)

    def _write_below(self, place: str, name: str, data: bytes) -> str:
        """Write a file in a new directory below a place; the directory is removed again where the file cannot be."""
        home = self._new_below(place)
        path = os.path.join(home, name)
        try:
            write_new(path, data, replace=True)
        except OSError:
            remove_tree(home)
            raise
        return path

    def _new_below(self, place: str) -> str:
        """Make an empty directory in this process's own directory below a place, which is made anew if it is gone."""
        with self._mutex:
            made = self._made.get(place)
            if made is None or _is_gone(made[1]):
                made = self._claim_anew(place)
            number = next(self._numbers)
            path = os.path.join(made[0], str(number))
        os.mkdir(path, 0o700)
        if place == self.preferred:  # the others are the system's own
            set_directory_mode(path, modes_in(made[0]))
        return path

    def _claim_anew(self, place: str) -> tuple[str, int]:
        """Make this process's own directory below a place, and sweep there; return the directory and its descriptor."""
        if place == self.preferred:  # the others are the system's own
            make_directory(place)
        is_first = not self._made
        gone = self._made.pop(place, None)
        if gone is not None and not _is_gone(gone[1]):
            # A signal handler has claimed it since the look: closed, it would be swept with all that is staged in it.
            return self._made.setdefault(place, gone)
        if gone is not None:
            os.close(gone[1])
        modes = modes_in(place) if place == self.preferred else PRIVATE
        claimed = _claim(place, modes)
        # A signal handler may have staged something since, in a directory that it has claimed: that one is kept.
        made = self._made.setdefault(place, claimed)
        if made is not claimed:
            os.rmdir(claimed[0])
            os.close(claimed[1])
        # Also where this process will not stage: of those whose root was refused, the next may have no such trouble.
        for swept in _candidates(self.preferred) if is_first else [place]:
            with suppress(OSError):  # one may write to a place without the right to list it
                sweep_dead(swept)
        _remove_at_exit_of_worker()
        return made

    def forget(self) -> None:
        """In the child of a fork: leave the parent's directories alone, without freeing its locks."""
        for _, fd in self._made.values():
            with suppress(OSError):
                os.close(fd)
        self._made = {}
        self._mutex = threading.RLock()


@lru_cache(maxsize=8)
def staging_below(preferred: str) -> Staging:
    """The staging of all who write to the same directory in this process: each staging holds a descriptor for life."""
    return Staging(preferred)


def _is_gone(fd: int) -> bool:
    """Whether a directory that this process holds open was removed.

    The descriptor is asked, not the path: where a path cannot be looked up for a moment, a directory that is still
    there would be given up, and swept with all that is staged in it.
    """
    return os.fstat(fd).st_nlink == 0


def _candidates(preferred: str) -> list[str]:
    """The places in which a file may be written, in the order in which they are tried; each place once."""
    places = [preferred]
    with suppress(FileNotFoundError):  # where all temporary directories are full, it finds none
        places.append(tempfile.gettempdir())
    places += ["/dev/shm", "/var/tmp"]
    return list(dict.fromkeys(places))


def _is_open_to_all(place: str) -> bool:
    """Whether any user may rename and replace what another one has in a directory: it is not sticky.

    Raises:
        OSError: there is no such directory.
    """
    mode = os.stat(place).st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _claim(place: str, modes: Modes) -> tuple[str, int]:
    """Make and lock a directory; its path, and the descriptor that holds the lock.

    The directory gets the name by which sweepers ask its lock only once it is locked: a sweeper that found the name
    between the two steps would take this process for dead.
    """
    mark = mark_of(os.stat(place).st_dev)
    new = tempfile.mkdtemp(mark, f"gpucache-{_NEW}{node_id()}.", place)
    fd = None
    try:
        set_directory_mode(new, modes)
        fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new_name = os.path.basename(new)
        name = new_name.replace(_NEW, _PREFIX, 1)
        path = _renamed(new, os.path.join(place, name))
    except OSError:
        if fd is not None:
            os.close(fd)
        remove_tree(new)
        raise
    return path, fd


def _renamed(new: str, path: str) -> str:
    """Rename a directory; return its path. On a mount that cannot, it keeps the name of one that is not locked yet.

    Such a one is swept once it is an hour old, and its lock is free.
    """
    try:
        os.rename(new, path)
        return path
    except OSError as error:
        from gpucache.disk.capabilities import is_refusal  # few mounts refuse it

        if not is_refusal(error):
            raise
        return new


def sweep_dead(place: str) -> int:
    """Remove the staging directories of dead processes below a place, beside any other process; return how many."""
    count = 0
    here = os.open(place, _DIRECTORY)
    try:
        for name in os.listdir(here):
            if name.startswith(PREFIXES) and _is_swept(here, name):
                count += 1
    finally:
        os.close(here)
    return count


def _is_swept(here: int, name: str) -> bool:
    """Remove a staging directory in an open one if its process is dead; tell whether that was done.

    What is emptied is the very directory whose lock was asked, whatever its name leads to by then.
    """
    try:
        fd = os.open(name, DIRECTORY, dir_fd=here)
    except PermissionError:
        return _is_empty_of_member(here, name)
    except OSError:
        return False  # another user's, or another sweeper has removed it
    try:
        if not _is_dead(name, fd):
            return False
        from gpucache.disk.within import empty  # few processes die with something staged

        empty(fd)
        os.rmdir(name, dir_fd=here)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_empty_of_member(here: int, name: str) -> bool:
    """Remove what another member of a group was killed at before it had its mode: an hour later, and only if empty."""
    try:
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        if _is_closed_members(os.fstat(here), found):
            os.rmdir(name, dir_fd=here)
            return True
    except OSError:
        pass
    return False


def _is_closed_members(above: os.stat_result, found: os.stat_result) -> bool:
    """Whether what this user may not open lies where a group shares the root, and is an hour old."""
    return is_groups(above.st_mode) and time.time() - found.st_mtime > STALE_S


def is_dead(path: str) -> bool:
    """Whether a staging directory is this user's and its lock is free, so that its process is dead.

    In a root that a group shares, likewise of any member's.

    One that was not locked yet when it was named is dead once it is an hour old. Of another node's processes no lock
    may be seen here, nor of those that see the directory by another mount, as a pod by a FUSE mount of its own: theirs
    are dead once nothing was staged for a day; likewise those whose names tell of no node, and all where ``flock`` does
    not work.
    """
    try:
        # Opening a FIFO would wait, unless only a directory will do.
        fd = os.open(path, DIRECTORY)
    except PermissionError:
        with suppress(OSError):
            return _is_closed_members(os.stat(os.path.dirname(path)), os.lstat(path))
        return False
    except OSError:
        return False  # another sweeper has removed it
    try:
        return _is_dead(os.path.basename(path), fd)
    except OSError:
        return False  # a disk that does not answer tells of nobody's death
    finally:
        let_go(fd)


def _is_dead(name: str, fd: int) -> bool:
    """As `is_dead`, of an open directory of this name."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() and not _is_shared(fd, found):
        return False
    unlocked_yet = name.startswith(PREFIXES[1])
    age_s = time.time() - found.st_mtime
    prefix = PREFIXES[1] if unlocked_yet else PREFIXES[0]
    is_seen = is_locked_here(name.removeprefix(prefix), found.st_dev)
    if not is_seen or not can_be_asked(fd):
        return age_s > DAY_S
    if unlocked_yet and age_s < STALE_S:
        return False
    return is_free_descriptor(fd)


def _is_shared(fd: int, found: os.stat_result) -> bool:
    """Whether an open directory, and the one that it lies in, are those of a group that shares the root."""
    above = os.stat("..", dir_fd=fd)
    return is_groups(found.st_mode) and is_groups(above.st_mode)


_all: list[Staging] = []


def _remove_all() -> None:
    """Remove, at exit, what was not published: it was private to this process."""
    for staging in _all:
        # A daemon thread may stage something at this moment.
        for path, _ in tuple(staging._made.values()):
            remove_tree(path)


at_exit(_remove_all)


def _remove_at_exit_of_worker() -> None:
    """Have all removed at the end of a worker process of `multiprocessing`, as torch and a `DataLoader` start them.

    One that was forked ends by `os._exit`, before `atexit` (CPython 3.10 to 3.14, `multiprocessing/popen_fork.py`).
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    from multiprocessing import util

    util.Finalize(None, _remove_all, exitpriority=-1)


@after_fork
def _after_fork_in_child() -> None:
    for staging in _all:
        staging.forget()
