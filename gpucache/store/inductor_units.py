"""The files of TorchInductor's in a root: what may go alone, how long ago that was used, and how it is removed.

Torch never removes any. Each *unit* may go alone, since torch makes again what it misses (read in torch 2.13.0,
`_inductor/codecache.py`):

- the files of one hash among the code (``<xx>/<hash>.py``, ``.cpp``, ``.so``, …) with ``locks/<hash>.lock``. Each is
  looked for before it is used. The lock is held while they are removed; torch holds it while it looks for a library and
  builds it, and opening it renews its time, so that a library that torch is about to load looks used.
- one file below ``fxgraph`` or ``aotautograd``: what cannot be opened there is a miss.

What stays, whatever its age: headers, whose paths a process of older versions of torch remembers; ``cache``, one file
for each kind of system, rewritten in place; and whatever else has no name of these.

A running torch has what it uses in memory. Left is an instant, between its look for a file that was not used for the
grace and its opening of that file. A time of use is the newest access or change: Linux renews access times once a day
(``relatime``) or never (``noatime``), so that what torch only reads may go a day early, and is made again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from gpucache.disk.door import DIRECTORY, SAFELY
from gpucache.disk.files import STALE_S
from gpucache.disk.locks import let_go
from gpucache.disk.node import DAY_S
from gpucache.disk.within import Straight
from gpucache.layout import inductor
from gpucache.layout.paths import members_directory
from gpucache.store.deletion import Freed
from gpucache.store.removal import InUse

_LOCK = os.O_RDONLY | SAFELY
LEAST_GRACE_S = 900.0
"""The shortest grace for TorchInductor's files, whatever else is said: torch writes the sources of all kernels of a
graph before its workers come to compile the last of them, and opens the locks only then."""
_USED = "it was used or replaced meanwhile"


class InductorFile(NamedTuple):
    """A file of TorchInductor's in a root, as it was when it was found."""

    path: str
    size_bytes: int
    physical_bytes: int
    """0 where it has links elsewhere, so that its removal frees nothing."""
    mark: tuple[int, ...]
    """Device, inode, and times of access and modification (ns): they tell of a use since."""

    @classmethod
    def of(cls, path: str, found: os.stat_result) -> InductorFile:
        """Describe a file by what `os.lstat` says of it now."""
        physical_bytes = found.st_size if found.st_nlink == 1 else 0
        mark = found.st_dev, found.st_ino, found.st_atime_ns, found.st_mtime_ns
        return cls(path, found.st_size, physical_bytes, mark)

    @property
    def used(self) -> float:
        """The newest access or change, in seconds since the epoch."""
        *_, accessed_ns, modified_ns = self.mark
        return max(accessed_ns, modified_ns) / 1e9


class Unit(NamedTuple):
    """What may go alone of TorchInductor's."""

    path: str
    """The path of its first file."""
    files: tuple[InductorFile, ...]
    """Without the lock."""
    lock: InductorFile | None
    lock_path: str | None
    """Where the lock is, or would be; None for what torch locks with none."""

    @property
    def used(self) -> float:
        """The newest access or change of a file or the lock, in seconds since the epoch."""
        files = self.files if self.lock is None else (*self.files, self.lock)
        return max(file.used for file in files)

    @property
    def modified(self) -> float:
        """The newest change of a file, in seconds since the epoch; 0 without files."""
        return max((file.mark[-1] / 1e9 for file in self.files), default=0.0)

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def physical_bytes(self) -> int:
        """How many bytes its removal frees."""
        return sum(file.physical_bytes for file in self.files)


class Buckets(NamedTuple):
    """All that is TorchInductor's in a root, as far as it may be removed."""

    units: tuple[Unit, ...]
    temporaries: tuple[Unit, ...]
    """What killed writers have not finished, more than an hour old."""
    empty: tuple[str, ...]
    """Directories of graphs in which nothing is left, for a day."""


def find(root: str, rest: Callable[[], object] | None = None) -> Buckets:
    """Look for what is TorchInductor's in a root, a real path. Follows no link; what vanishes meanwhile is left out.

    ``rest`` is called after each directory, and may wait.
    """
    return _Search(root, rest).found()


def find_everywhere(root: str, rest: Callable[[], object] | None = None) -> Buckets:
    """As `find`, in a root and in the directories that members of its group have of their own there.

    Of those this process sees its own only, unless it is root's.
    """
    found = [find(root, rest)]
    members = members_directory(root)
    for name in _names(members):
        if name.isdigit():
            found.append(find(f"{members}/{name}", rest))
    return Buckets(
        units=tuple(unit for one in found for unit in one.units),
        temporaries=tuple(unit for one in found for unit in one.temporaries),
        empty=tuple(path for one in found for path in one.empty),
    )


class _Search:
    """A walk through the directories of a root that are Inductor's by their names."""

    def __init__(self, root: str, rest: Callable[[], object] | None) -> None:
        self.root = root
        self.rest = rest
        self.now = time.time()
        self.files: dict[str, list[InductorFile]] = {}
        self.temporaries: list[Unit] = []
        self.empty: list[str] = []

    def found(self) -> Buckets:
        for name in _names(self.root):
            levels = inductor.levels(name)
            if levels:
                self._walk(f"{self.root}/{name}", levels)
        units = [self._unit(name, files) for name, files in self.files.items()]
        return Buckets(tuple(units), tuple(self.temporaries), tuple(self.empty))

    def _walk(self, directory: str, levels: int) -> None:
        """Look at the files ``levels`` below a directory's parent, and at nothing in between."""
        names = _names(directory)
        if levels > 1:
            for name in names:
                self._walk(f"{directory}/{name}", levels - 1)
        else:
            for name in names:
                with suppress(OSError):
                    self._add(f"{directory}/{name}")
        self._note_empty(directory, names)
        if self.rest is not None:
            self.rest()

    def _add(self, path: str) -> None:
        below = path[len(self.root) + 1 :]
        unit = inductor.unit(below)
        is_temporary = inductor.is_temporary(below)
        if unit is None and not is_temporary:
            return
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            return
        file = InductorFile.of(path, found)
        if unit is not None:
            self.files.setdefault(unit, []).append(file)
        elif self.now - file.used > STALE_S:
            self.temporaries.append(Unit(path, (file,), None, None))

    def _note_empty(self, directory: str, names: list[str]) -> None:
        if names or not inductor.is_of_one_graph(directory[len(self.root) + 1 :]):
            return
        with suppress(OSError):
            found = os.lstat(directory)
            if stat.S_ISDIR(found.st_mode) and self.now - found.st_mtime > DAY_S:
                self.empty.append(directory)

    def _unit(self, name: str, files: list[InductorFile]) -> Unit:
        """Put a unit together; ``name`` is the hash of code, or the path of a graph below the root."""
        lock_path = None if "/" in name else f"{self.root}/locks/{name}.lock"
        lock = None
        others = []
        for file in sorted(files):
            if file.path == lock_path:
                lock = file
            else:
                others.append(file)
        first = min(file.path for file in others or files)
        return Unit(first, tuple(others), lock, lock_path)


def _names(directory: str) -> list[str]:
    """The names in a directory; none where it is no directory, is a link, is gone or may not be listed."""
    try:
        fd = os.open(directory, DIRECTORY)
    except OSError:
        return []
    try:
        return sorted(os.listdir(fd))
    except OSError:
        return []
    finally:
        os.close(fd)


# ---- removing


def remove_unit(unit: Unit, disk: Straight) -> Freed:
    """Remove what may go alone, unless some of it was used since it was found, or its lock is held.

    Beside any torch. Killed at any instant, some of the files are left, each whole, which torch takes as they are.

    Raises:
        InUse: it is as it was.
    """
    with held(unit, disk):
        for file in unit.files:
            _check_unchanged(file, disk)
        freed = Freed()
        for file in unit.files:
            with suppress(InUse):  # torch has begun to make it anew, without a lock
                freed = freed.plus(remove_file(file, disk))
        if unit.lock is not None:
            with suppress(OSError):
                disk.unlink(unit.lock.path)
                freed = freed.plus(Freed(1, unit.lock.size_bytes, unit.lock.physical_bytes))
    return freed


@contextmanager
def held(unit: Unit, disk: Straight) -> Iterator[None]:
    """Hold the lock of a unit for the length of a ``with`` block, if it has one.

    Raises:
        InUse: torch holds the lock, or has opened it since the unit was found.
    """
    if unit.lock is None:
        if unit.lock_path is not None and disk.lexists(unit.lock_path):
            raise InUse("it is locked")
        yield
        return
    try:
        fd = disk.act(unit.lock.path, lambda here, name: os.open(name, _LOCK, dir_fd=here))
    except OSError as error:
        raise InUse(_USED) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_unchanged(unit.lock, disk)
        yield
    except BlockingIOError:
        raise InUse("it is locked") from None
    finally:
        let_go(fd)


def _check_unchanged(file: InductorFile, disk: Straight) -> None:
    """Raise `InUse` if a file was used or replaced since it was found; one that is gone was removed by another."""
    try:
        found = disk.lstat(file.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InUse(error.strerror or str(error)) from error
    if InductorFile.of(file.path, found).mark != file.mark:
        raise InUse(_USED)


def remove_file(file: InductorFile, disk: Straight) -> Freed:
    """Remove one file, unless it was used since; a lock while it is held.

    Raises:
        InUse: it is as it was.
    """
    try:
        physical_bytes = disk.act(file.path, partial(_remove_unchanged, file))
    except BlockingIOError:
        raise InUse("it is locked") from None
    except OSError as error:
        if error.errno == errno.ENOENT:  # another process was faster
            return Freed()
        raise InUse(error.strerror or str(error)) from error
    return Freed(1, file.size_bytes, physical_bytes)


def _remove_unchanged(file: InductorFile, here: int, name: str) -> int:
    """Remove a file by its name in an open directory; the bytes that this frees.

    Raises:
        InUse: it was used since.
        OSError: it is locked, or gone, or may not be removed.
    """
    fd = None
    try:
        if name.endswith(".lock"):
            fd = os.open(name, _LOCK, dir_fd=here)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        now = InductorFile.of(file.path, found)
        is_file = stat.S_ISREG(found.st_mode)
        if not is_file or now.mark != file.mark:
            raise InUse(_USED)
        os.unlink(name, dir_fd=here)
    finally:
        if fd is not None:
            let_go(fd)
    return now.physical_bytes


def remove_empty(root: str, directories: Iterable[str], disk: Straight) -> None:
    """Remove the directories that have become empty, and those above them below the root."""
    deepest_first = sorted(directories, key=len, reverse=True)
    for directory in deepest_first:
        with suppress(OSError):  # something else is in it
            while directory != root:
                disk.rmdir(directory)
                directory = os.path.dirname(directory)
