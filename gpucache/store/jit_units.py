"""The units of other JIT caches in a root: what of them may go alone, how large it is, and when it was used last.

They lie in ``<root>/jit/<cache>/``, and in a group's root without ACLs also in each member's own directory. What is a
unit tells `layout.jit_units` by names. A last use is the newest access or change of any file: Linux renews access times
once a day (``relatime``) or never (``noatime``), so that what is only read may look a day older, and be made again.

Trees may be anybody's: directories are walked by descriptors, no link is followed, nothing is opened but directories,
and what lies deeper than `DEEPEST` or is more than `MOST_NAMES` is not looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from gpucache.disk.files import STALE_S
from gpucache.disk.within import DEEPEST, Straight, open_directory
from gpucache.layout import paths
from gpucache.layout.jit_cache import JitCache, Unit
from gpucache.layout.jit_units import Match, lock_of
from gpucache.store.removal import InUse

MOST_NAMES = 5_000_000
"""So many names of one cache are looked at; a walk that has seen more stops, and says so."""

_NAMES_A_REST = 256
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""How it is said of what was there that it is gone, or replaced by a link."""


class Measure:
    """What a tree of files takes, and when it was used last; added up while the tree is walked."""

    __slots__ = (
        "_seen",
        "files",
        "is_closed",
        "logical_bytes",
        "modified",
        "physical_bytes",
        "used",
    )

    def __init__(self) -> None:
        self.files = self.logical_bytes = self.physical_bytes = 0
        self.used = self.modified = 0.0
        self.is_closed = False
        """Whether a directory of it may not be listed, or nothing may be removed from it, by this user."""
        self._seen: set[tuple[int, int]] | None = None

    def add(self, found: os.stat_result) -> None:
        """Count one name of a file; an inode's bytes count once among the physical ones."""
        self.files += 1
        self.logical_bytes += found.st_size
        self.modified = max(self.modified, found.st_mtime)
        self.used = max(self.used, found.st_mtime, found.st_atime)
        if found.st_nlink > 1:
            inode = found.st_dev, found.st_ino
            self._seen = self._seen or set()
            if inode in self._seen:
                return
            self._seen.add(inode)
        self.physical_bytes += found.st_size


class JitUnit(NamedTuple):
    """What may go alone of a JIT cache, as it was when it was found."""

    cache: str
    name: str
    """Its path below the cache's directory; of several files the first one's."""
    base: str
    """The cache's directory."""
    parts: tuple[str, ...]
    """The paths of its directory or files below the cache's directory, in the order in which they are to go."""
    kind: Unit | None
    """What is known of units of its kind; None for what a writer has not finished, or a removal has left."""
    files: int
    logical_bytes: int
    physical_bytes: int
    """With hard links within it counted once."""
    used: float
    """The newest access or change of a file, in seconds since the epoch; of a directory without files, its change."""
    modified: float
    """The newest change of a file."""
    uid: int
    """Who owns its directory, or its first file."""
    inode: int
    """Of its first part."""
    is_closed: bool
    """Whether not all of it could be removed by this user, or looked at."""

    @property
    def path(self) -> str:
        """The path of its first part."""
        return f"{self.base}/{self.parts[0]}"

    @property
    def lock_path(self) -> str | None:
        """Where its software's lock is, or would be; None where it has none."""
        if self.kind is None:
            return None
        lock = lock_of(self.name, self.kind)
        return None if lock is None else f"{self.base}/{lock}"

    @property
    def keeps_directory(self) -> bool:
        """Whether its directory stays when it goes, since the lock lies in it.

        Its software makes the directory and then the lock. Who found the directory gone in between would fail, as torch
        (2.13.0, seen), or wait for ever: tvm-ffi takes every error of opening the lock for "held" (0.1.15, `utils/
        lockfile.py`, ``acquire``).
        """
        lock = self.lock_path
        return lock is not None and lock.startswith(f"{self.path}/")

    @property
    def is_empty_shell(self) -> bool:
        """Whether nothing is left of it but such a directory, for whose lock nobody waits."""
        if self.files or not self.keeps_directory or self.kind is None:
            return False
        by_existence = self.kind.lock_by == "existence"
        return not (by_existence and os.path.lexists(self.lock_path or ""))


class JitUnits(NamedTuple):
    """All that one directory of a JIT cache has."""

    cache: JitCache
    directory: str
    units: tuple[JitUnit, ...]
    staged: tuple[JitUnit, ...]
    """What a writer has not finished, whatever its age (`is_left_behind`)."""
    aside: tuple[JitUnit, ...]
    """What a removal that was killed had set aside: nothing reads it."""
    unreadable: tuple[tuple[str, str], ...]
    """The paths of directories that could not be listed, and why."""
    is_complete: bool
    """Whether all of it was looked at, and not only the first `MOST_NAMES` names."""


def is_left_behind(staged: JitUnit, now: float) -> bool:
    """Whether a writer has not touched what it has not finished for an hour, so that nobody will finish it."""
    return now - staged.used > STALE_S


def directories(root: str, name: str, disk: Straight) -> list[str]:
    """The directories that a JIT cache has in a root, a real path: the root's own, and those of members."""
    found = [paths.jit_directory(root, name)]
    members: list[str] = []
    with suppress(OSError):
        members = sorted(disk.listdir(paths.members_directory(root)))
    for member in members:
        if member.isdigit():
            found.append(paths.jit_directory(paths.member_directory(root, int(member)), name))
    return [path for path in found if _is_directory(path, disk)]


def _is_directory(path: str, disk: Straight) -> bool:
    try:
        return stat.S_ISDIR(disk.lstat(path).st_mode)
    except OSError:
        return False


def find(
    root: str,
    caches: Iterable[JitCache],
    rest: Callable[[], object] | None = None,
    most_names: int | None = None,
) -> list[JitUnits]:
    """Look for the units of some caches in a root, a real path. Beside any process; what vanishes is left out.

    ``rest`` is called now and then, and may wait. ``most_names`` of each cache are looked at, by default `MOST_NAMES`.
    """
    found = []
    with Straight() as disk:
        for cache in caches:
            for directory in directories(root, cache.name, disk):
                found.append(_Walk(cache, directory, rest, most_names).found(disk))
    return found


def find_in(directory: str, cache: JitCache, most_names: int) -> JitUnits:
    """Look for the units of a cache in a directory of its own, wherever that is; a real path."""
    with Straight() as disk:
        return _Walk(cache, directory, None, most_names).found(disk)


_Seen = tuple[int, tuple[float, int, int], Measure]
"""A part of a unit: its turn, its own time of change, owner and inode, and what it takes."""


def _by_name(unit: JitUnit) -> str:
    return unit.name


class _Walk:
    """A walk through one directory of a JIT cache."""

    def __init__(
        self,
        cache: JitCache,
        directory: str,
        rest: Callable[[], object] | None = None,
        most_names: int | None = None,
    ) -> None:
        self.cache = cache
        self.directory = directory
        self.match = Match(cache)
        self.rest = rest
        self.names = 0
        self.most_names = MOST_NAMES if most_names is None else most_names
        self.units: dict[str, dict[str, _Seen]] = {}
        """The parts of units that may have companions, by the units' names."""
        self.kinds: dict[str, Unit] = {}
        self.whole: list[JitUnit] = []
        """Units that have no companions."""
        self.staged: list[JitUnit] = []
        self.aside: list[JitUnit] = []
        self.unreadable: list[tuple[str, str]] = []

    def found(self, disk: Straight) -> JitUnits:
        """Walk, and put together what was seen; where the directory itself cannot be listed, that."""
        try:
            with disk.directory(self.directory) as fd:
                self._look(fd, ())
        except OSError as error:
            self._refused((), error)
        for name, parts in self.units.items():
            self.whole.append(self.unit(name, parts, self.kinds[name]))
        units = [unit for unit in self.whole if not unit.is_empty_shell]
        units.sort(key=_by_name)
        return JitUnits(
            cache=self.cache,
            directory=self.directory,
            units=tuple(units),
            staged=tuple(self.staged),
            aside=tuple(self.aside),
            unreadable=tuple(self.unreadable),
            is_complete=self.names <= self.most_names,
        )

    def _look(self, fd: int, above: tuple[str, ...]) -> None:
        """Look at what is in an open directory, whose path below the cache's is ``above``."""
        for item in self._items(fd, above):
            with suppress(FileNotFoundError):
                self._item(fd, item, (*above, item.name))

    def _items(self, fd: int, above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(fd) as items:
                for item in items:
                    self.names += 1
                    if self.names > self.most_names:
                        return
                    if self.rest is not None and self.names % _NAMES_A_REST == 0:
                        self.rest()
                    yield item
        except OSError as error:
            self._refused(above, error)

    def _item(self, fd: int, item: os.DirEntry[str], parts: tuple[str, ...]) -> None:
        is_directory = item.is_dir(follow_symlinks=False)
        if not is_directory and not item.is_file(follow_symlinks=False):
            return  # no JIT compiler makes links or FIFOs
        place = self.match.place(parts, is_directory)
        if place.role == "way":
            with self._opened(fd, item.name, parts) as inner:
                if inner is not None:
                    self._look(inner, parts)
        elif place.role == "part" and place.kind is not None:
            path = "/".join(parts)
            if place.kind.companions:
                self.kinds[place.unit] = place.kind
            seen = self.seen(path, place.turn, place.kind, fd, item.name)
            if place.kind.companions:
                self.units.setdefault(place.unit, {})[path] = seen
            else:
                self.whole.append(self.unit(place.unit, {path: seen}, place.kind))
        elif place.role in ("staged", "aside"):
            path = "/".join(parts)
            unit = self.unit(path, {path: self.seen(path, 0, None, fd, item.name)}, None)
            (self.staged if place.role == "staged" else self.aside).append(unit)

    def seen(self, path: str, turn: int, kind: Unit | None, fd: int, name: str) -> _Seen:
        """Look at one part of a unit, by its name in an open directory; ``path`` is below the cache's directory.

        Raises:
            FileNotFoundError: it is gone.
        """
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        measure = Measure()
        if stat.S_ISDIR(found.st_mode):
            lock = None if kind is None else lock_of(path, kind)
            self._tree_in(fd, name, tuple(path.split("/")), measure, lock)
        else:
            measure.add(found)
        return turn, (found.st_mtime, found.st_uid, found.st_ino), measure

    def _tree_in(
        self, fd: int, name: str, parts: tuple[str, ...], measure: Measure, lock: str | None
    ) -> None:
        """Add up what is in a directory of an open one, but for the lock."""
        with self._opened(fd, name, parts) as inner:
            if inner is None:
                measure.is_closed = True
            else:
                self._tree(inner, parts, measure, lock)

    def _tree(self, fd: int, above: tuple[str, ...], measure: Measure, lock: str | None) -> None:
        """Add up what is in an open directory."""
        if len(above) > DEEPEST:
            measure.is_closed = True
            return
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            measure.is_closed = True
        for item in self._items(fd, above):
            parts = (*above, item.name)
            with suppress(FileNotFoundError):
                if item.is_dir(follow_symlinks=False):
                    self._tree_in(fd, item.name, parts, measure, lock)
                elif "/".join(parts) != lock:
                    measure.add(item.stat(follow_symlinks=False))

    @contextmanager
    def _opened(self, fd: int, name: str, parts: tuple[str, ...]) -> Iterator[int | None]:
        """Open a directory of an open one for a ``with`` block; None where that is refused, which is noted."""
        inner = None
        try:
            inner = open_directory(fd, name)
        except OSError as error:
            self._refused(parts, error)
        try:
            yield inner
        finally:
            if inner is not None:
                os.close(inner)

    def _refused(self, parts: tuple[str, ...], error: OSError) -> None:
        if error.errno not in _GONE:
            path = "/".join((self.directory, *parts))
            self.unreadable.append((path, os.strerror(error.errno or errno.EIO)))

    def unit(self, name: str, parts: dict[str, _Seen], kind: Unit | None) -> JitUnit:
        """Put a unit together of its parts, by path."""
        in_turn = sorted(parts, key=lambda path: (parts[path][0], path))
        changed, uid, inode = parts[in_turn[0]][1]
        measures = [measure for _, _, measure in parts.values()]
        is_empty = not any(measure.files for measure in measures)
        return JitUnit(
            cache=self.cache.name,
            name=name,
            base=self.directory,
            parts=tuple(in_turn),
            kind=kind,
            files=sum(measure.files for measure in measures),
            logical_bytes=sum(measure.logical_bytes for measure in measures),
            physical_bytes=sum(measure.physical_bytes for measure in measures),
            used=changed if is_empty else max(measure.used for measure in measures),
            modified=changed if is_empty else max(measure.modified for measure in measures),
            uid=uid,
            inode=inode,
            is_closed=any(measure.is_closed for measure in measures),
        )


def measured_again(unit: JitUnit, cache: JitCache, disk: Straight) -> JitUnit | None:
    """The unit as it is now, without companions that have come since; None where it is gone, or behind a link.

    Raises:
        InUse: it cannot be looked at; the message says why.
    """
    walk = _Walk(cache, unit.base)
    parts: dict[str, _Seen] = {}
    for turn, path in enumerate(unit.parts):
        try:
            parts[path] = disk.act(f"{unit.base}/{path}", partial(walk.seen, path, turn, unit.kind))
        except OSError as error:
            if error.errno not in _GONE:
                raise InUse(error.strerror or str(error)) from error
    if not parts:
        return None
    return walk.unit(unit.name, parts, unit.kind)
