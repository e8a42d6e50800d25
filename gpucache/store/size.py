"""The size of the store, which its writers keep in the file ``stats/size``, and the count that corrects it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.files import sweep_old
from gpucache.layout import paths
from gpucache.layout.keys import STORE_KEY, device_directories, shards
from gpucache.store.manifest import MANIFEST
from gpucache.store.quarantine import ASIDE

_COUNTED_S = 86400.0


_LENGTH = 96


GROUP_BYTES = 1024  # a view's own file, about


class Total(NamedTuple):
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


def counted(root: str) -> int:
    """Bytes of all stored entries and, about, of their views; what vanishes meanwhile counts nothing."""
    most = len(device_directories(root))
    for shard in shards(root):  # what killed evictions left here nobody else sweeps
        with suppress(OSError):
            sweep_old(shard, ASIDE)
    return sum(_entry_size(entry, most) for entry in stored_entries(root))


def stored_entries(root: str) -> Iterable[str]:
    """The paths of what is stored; links are left out."""
    for shard in shards(root):
        with suppress(OSError), os.scandir(shard) as entries:
            yield from (
                entry.path
                for entry in entries
                if STORE_KEY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )


def _entry_size(entry: str, most_views: int) -> int:
    size = 0
    with suppress(OSError), os.scandir(entry) as files:
        for file in files:
            found = file.stat(follow_symlinks=False)
            views = min(found.st_nlink - 1, most_views) if file.name == MANIFEST else 0
            size += found.st_size + views * GROUP_BYTES
    return size


def last_uses(root: str) -> Iterator[tuple[int, str]]:
    """When each stored entry was last used (ns since the epoch), for one system call each."""
    for entry in stored_entries(root):
        with suppress(OSError):
            yield os.lstat(f"{entry}/{MANIFEST}").st_mtime_ns, entry


def count_anew_later(root: str) -> None:
    """Let the next writer count the store anew: somebody else has changed it. ``root`` is a real path."""
    path = _path(root)
    if os.path.realpath(path) != path:
        return  # a link leads elsewhere
    with suppress(OSError):
        for _ in range(100):  # writers hold it for microseconds
            if not os.path.exists(path) or updated(root, 0, anew=True, now=0.0) is not None:
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
    return paths.ours(root, "stats", "size")


_FILE = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def updated(
    root: str,
    change: int,
    *,
    draining: bool | None = None,
    anew: bool = False,
    now: float | None = None,
) -> Total | None:
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
        new = Total(size, old.draining if draining is None else draining, when)
        if new != old:
            os.pwrite(fd, json.dumps(new).encode().ljust(_LENGTH), 0)
        return new
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _parsed(text: bytes) -> Total:
    try:
        size, draining, when = json.loads(text)
        return Total(int(size), bool(draining), float(when))
    except (ValueError, TypeError, OverflowError):
        return Total()
