"""A limit that keeps itself: writers keep the store's size in a file, and evict what was used least recently.

Counted and evicted are entries of the store, with their views; what stock Triton and torch left is never touched here.
A put adds its size to the file, one small write; over the limit, one process at a time evicts down to nine tenths of
it, in turns of 200 ms after its own kernel was returned. The size is counted anew after a prune, and once a day.

The file is right but for what was put while it was counted, and what processes could not write before they ended:
another one was writing at that moment. Bytes are those of the files' contents, with about 1 KiB for each view; links
from elsewhere, and copies on another file system, are not counted.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from gpucache import fs, mounts, paths
from gpucache.keys import KEY, STORE_KEY, device_directories, shards, view_key
from gpucache.log import tell
from gpucache.removal import InUse, Place, refuse_mounts, remove
from gpucache.store import ASIDE, MANIFEST, STAMP_S, Manifest
from gpucache.units import parse_size

MAX_SIZE = "GPUCACHE_MAX_SIZE"
DEFAULT = "10% of the file system, at most 50GiB"

_SHARE, _MOST = 0.1, 50 * 2**30
_LOW = 0.9
_TURN_S = 0.2
_COUNTED_S = 86400.0
_PAUSE_S = 30.0
_AHEAD_S = 86400.0
_LENGTH = 96
_GROUP_BYTES = 1024  # a view's own file, about
LEAST_GRACE_S = 2.0  # Triton opens the files after our return, however often uses are stamped


def max_size_bytes(root: str, environ: Mapping[str, str]) -> int:
    """What `GPUCACHE_MAX_SIZE` allows the store to take; 0 is no limit.

    Raises:
        ValueError: the variable makes no sense.
        OSError: the file system does not answer.
    """
    text = environ.get(MAX_SIZE)
    if text:
        return parse_size(text)
    if not hasattr(os, "statvfs"):
        return _MOST
    disk = os.statvfs(root)
    return min(int(disk.f_blocks * disk.f_frsize * _SHARE), _MOST)


class _Total(NamedTuple):
    """What the file says."""

    size_bytes: int = 0
    draining: bool = False
    """Whether an eviction has begun and not yet reached its aim."""
    counted: float = 0.0
    """When the store was last counted (seconds since the epoch); 0 for never."""

    @property
    def stale(self) -> bool:
        """Whether the store is to be counted anew."""
        return not 0 <= time.time() - self.counted <= _COUNTED_S


class Limit:
    """The limit of one root, as one process keeps it. Any thread may call it; only the disk is shared with others."""

    def __init__(self, root: str, locks: str, limit_bytes: int, grace_s: float = 3 * STAMP_S) -> None:
        self.root = root
        self.locks = locks
        self.limit_bytes = limit_bytes
        self.grace_s = max(grace_s, LEAST_GRACE_S)
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._mutex = threading.RLock()  # a manager object may go, and call us, while we are at work
        self._pending = 0
        self._due = False
        self._not_before = 0.0
        self._thread: threading.Thread | None = None
        self._oldest: list[tuple[int, str]] = []
        self._mounted: list[str] = []

    def published(self, manifest: Manifest) -> None:
        """Count what was put into the store, with one view. The eviction it may call for is left to `enforce`.

        Never raises for what the disk says.
        """
        described = len(json.dumps(manifest, separators=(",", ":")))
        self._put(sum(size for size, _, _ in manifest["files"].values()) + described + _GROUP_BYTES)

    def adopted(self, files: Iterable[str]) -> None:
        """Count the files of an entry that stock Triton had made, as `published`."""
        with suppress(OSError):
            self._put(sum(os.stat(path).st_size for path in files) + 2 * _GROUP_BYTES)

    def viewed(self) -> None:
        """Count one more view, as `published`."""
        self._put(_GROUP_BYTES)

    def refused(self) -> None:
        """The disk takes no more: what is over the limit is to go all the same, or nothing could ever be put again."""
        self._put(0)

    def enforce(self) -> None:
        """Begin a turn of eviction in a thread if one is due. It ends by itself, before the interpreter does."""
        with self._mutex:
            running = self._thread is not None and self._thread.is_alive()
            if not self._due or running or time.monotonic() < self._not_before:
                return
            self._due = False
            self._thread = threading.Thread(target=self.turn, name="gpucache-limit")
            with suppress(RuntimeError):  # no thread can be started: the interpreter is ending
                self._thread.start()

    def turn(self) -> None:
        """Evict for 200 ms at most, unless another process does. Never raises for what the disk says.

        The turn in which the store is counted anew takes as long as that does.
        """
        with suppress(OSError):
            fd = os.open(self.locks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _held.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._evict()
            finally:
                _held.discard(fd)
                with suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)  # a child of a fork may have the descriptor still
                os.close(fd)

    def _put(self, size: int) -> None:
        if not self.limit_bytes:
            return
        with suppress(OSError):
            total = self._add(size)
            if total is not None and (total.stale or total.draining or total.size_bytes > self.limit_bytes):
                self._due = True

    def _add(self, change: int, draining: bool | None = None) -> _Total | None:
        """Write the change to the file; None while another process does the same: with the next one."""
        with self._mutex:
            self._pending += change
            total = _updated(self.root, self._pending, draining=draining)
            if total is not None:
                self._pending = 0
            return total

    def _evict(self) -> None:
        total = self._add(0)
        if total is not None and total.stale:
            total = _updated(self.root, counted(self.root), anew=True)
        if total is None or not (total.draining or total.size_bytes > self.limit_bytes):
            return
        size, aim, deadline = total.size_bytes, int(self.limit_bytes * _LOW), time.monotonic() + _TURN_S
        devices = [path for _, path in device_directories(self.root)]
        self._mounted = [point for point in mounts.points() if point.startswith(f"{self.root}/")]
        for used_ns, entry in self._oldest_first() if size > aim else ():
            if is_recent(used_ns / 1e9, time.time(), self.grace_s):
                self._oldest.clear()
                self._pause()
                break
            freed = self._evicted(used_ns, entry, devices)
            if freed:
                tell(logging.INFO, "evicted: %s, %d bytes, not used since %.0f", entry, freed, used_ns / 1e9)
            size -= freed
            self._add(-freed, draining=True)
            if size <= aim:
                self._oldest.clear()
            if size <= aim or time.monotonic() > deadline:
                break
        else:
            if size > aim:  # nothing is left that could go
                self._pause()
        self._add(0, draining=size > aim)

    def _oldest_first(self) -> Iterator[tuple[int, str]]:
        """The stored entries by their last use: what an earlier turn has left to this one, and then all anew."""
        for looked in (False, True):
            if looked:
                now = time.time()
                self._oldest = sorted(_used(self.root), key=lambda one: plausible(one[0] / 1e9, now), reverse=True)
            while self._oldest:
                yield self._oldest.pop()

    def _pause(self) -> None:
        self._not_before = time.monotonic() + min(self.grace_s, _PAUSE_S)

    def _evicted(self, used_ns: int, entry: str, devices: Iterable[str]) -> int:
        """Remove an entry and its views; the bytes it was counted with, 0 where it stays."""
        places = _places(entry, devices)
        if not places or places[0].mark[1] != used_ns:  # used since we looked, so that others come first
            return 0
        if any(is_recent(place.mark[1] / 1e9, time.time(), self.grace_s) for place in places):
            return 0
        try:
            refuse_mounts([place.path for place in places], self._mounted)
            stored = remove(os.path.basename(entry), places, self.locks)[0]
        except InUse:
            return 0
        links = sum(place.mark[0] == places[0].mark[0] for place in places) - 1
        return stored.logical_bytes + links * _GROUP_BYTES


def is_recent(used: float, now: float, grace_s: float) -> bool:
    """Whether a use is within the grace."""
    return now - plausible(used, now) <= grace_s


def plausible(used: float, now: float) -> float:
    """The time of a use; long ago where it is more than a day ahead, which only a wrong clock says."""
    return used if used - now <= _AHEAD_S else 0.0


def counted(root: str) -> int:
    """Bytes of all stored entries and, about, of their views; what vanishes meanwhile counts nothing."""
    most = len(device_directories(root))
    for shard in shards(root):  # what killed evictions left here nobody else sweeps
        with suppress(OSError):
            fs.sweep(shard, ASIDE)
    return sum(_size(entry, most) for entry in _entries(root))


def _entries(root: str) -> Iterable[str]:
    """The paths of what is stored; links are left out."""
    for shard in shards(root):
        with suppress(OSError), os.scandir(shard) as entries:
            yield from (
                entry.path
                for entry in entries
                if STORE_KEY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )


def _size(entry: str, most_views: int) -> int:
    size = 0
    with suppress(OSError), os.scandir(entry) as files:
        for file in files:
            found = file.stat(follow_symlinks=False)
            views = min(found.st_nlink - 1, most_views) if file.name == MANIFEST else 0
            size += found.st_size + views * _GROUP_BYTES
    return size


def _used(root: str) -> Iterator[tuple[int, str]]:
    """When each stored entry was last used (ns since the epoch), for one system call each."""
    for entry in _entries(root):
        with suppress(OSError):
            yield os.lstat(f"{entry}/{MANIFEST}").st_mtime_ns, entry


def _places(entry: str, devices: Iterable[str]) -> list[Place]:
    """The stored entry and its views; none where it is gone."""
    key = os.path.basename(entry)
    stored = _place(entry)
    if stored is None:
        return []
    views = [_place(f"{device}/{view_key(key)}") for device in devices]
    if not KEY.fullmatch(key):  # several files have their views under one key
        views = [view for view in views if view is not None and view.mark[0] == stored.mark[0]]
    return [stored, *(view for view in views if view is not None)]


def _place(path: str) -> Place | None:
    try:
        found = os.lstat(f"{path}/{MANIFEST}")
    except OSError:
        return None
    return Place(path, (found.st_ino, found.st_mtime_ns), ours=True)


# ---- the file


def forget(root: str) -> None:
    """Let the next writer count the store anew: somebody else has changed it. ``root`` is a real path."""
    path = _path(root)
    if os.path.realpath(path) != path:
        return  # a link leads elsewhere
    with suppress(OSError):
        for _ in range(100):  # writers hold it for microseconds
            if not os.path.exists(path) or _updated(root, 0, anew=True, now=0.0) is not None:
                return
            time.sleep(0.001)


def total_bytes(root: str) -> int | None:
    """What the store takes, as its writers keep it; None where nobody has counted."""
    try:
        with open(_path(root), "rb") as file:
            total = _parsed(file.read(_LENGTH))
    except OSError:
        return None
    return total.size_bytes if total.counted else None


def _path(root: str) -> str:
    return paths.own(root, "stats", "size")


_FILE = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def _updated(
    root: str, change: int, *, draining: bool | None = None, anew: bool = False, now: float | None = None
) -> _Total | None:
    """The total after adding ``change``, or after setting it (``anew``); None while another process does the same."""
    try:
        fd = os.open(_path(root), _FILE, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(_path(root)), mode=0o700, exist_ok=True)
        fd = os.open(_path(root), _FILE, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        old = _parsed(os.pread(fd, _LENGTH, 0))
        when = (time.time() if now is None else now) if anew else old.counted
        size = max(0, change if anew else old.size_bytes + change)
        new = _Total(size, old.draining if draining is None else draining, when)
        if new != old:
            os.pwrite(fd, json.dumps(new).encode().ljust(_LENGTH), 0)
        return new
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _parsed(text: bytes) -> _Total:
    try:
        size, draining, when = json.loads(text)
        return _Total(int(size), bool(draining), float(when))
    except (ValueError, TypeError, OverflowError):
        return _Total()


# ---- forks

_held: set[int] = set()
_all: weakref.WeakSet[Limit] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child of a fork must not hold the parent's turn, nor wait for one of its threads."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    for limit in _all:
        limit._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
