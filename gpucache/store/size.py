"""The size of the store, which its writers keep in the file ``stats/size``, and the count that corrects it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.door import open_regular, read_limited
from gpucache.disk.files import sweep_old
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.layout.keys import STORE_KEY, device_directories, shards
from gpucache.store.manifest import MANIFEST
from gpucache.store.quarantine import ASIDE

_COUNTED_S = 86400.0
_LENGTH = 96
_PASSES = 3
_TRIES, _TRY_S = 100, 0.001

GROUP_BYTES = 1024
"""What a view takes that is not linked to the store: its group file, about."""


class Total(NamedTuple):
    """What the store takes, as the file says."""

    size_bytes: int = 0
    draining: bool = False
    """Whether an eviction has begun and not yet reached its aim."""
    counted: float = 0.0
    """When the store was last counted (seconds since the epoch); 0 for never."""

    @property
    def stale(self) -> bool:
        """Whether the store is to be counted anew."""
        age_s = time.time() - self.counted
        return not 0 <= age_s <= _COUNTED_S


def counted(root: str, rest: Callable[[], object] | None = None) -> int:
    """Count the bytes of all stored entries and, about, of their views; what vanishes meanwhile counts nothing.

    ``rest`` is called after every part of the store, and may wait. Parts that change while the others are counted are
    counted again, so that entries put or removed meanwhile are right in the sum. Approximate are views that are made
    meanwhile, and what changes too fast for two more passes, or within one tick of the file system's clock.
    """
    most_views = len(device_directories(root))
    for shard in shards(root):  # what killed evictions left here nobody else sweeps
        with suppress(OSError):
            sweep_old(shard, ASIDE)
    sizes: dict[str, int] = {}
    modified: dict[str, int] = {}
    for _ in range(_PASSES):
        unchanged = True
        for shard in shards(root):
            # Asked before the look: what changes after it is seen by the next pass.
            modified_ns = _modified_ns(shard)
            if modified.get(shard) == modified_ns:
                continue
            size = 0
            for entry in _entries_of(shard):
                size += _entry_size(entry, most_views)
            sizes[shard] = size
            modified[shard] = modified_ns
            unchanged = False
            if rest is not None:
                rest()
        if unchanged:
            break
    total = 0
    for shard in shards(root):
        total += sizes.get(shard, 0)
    return total


def _modified_ns(directory: str) -> int:
    """When an entry was last put into a directory or taken from it; 0 where the directory is gone."""
    try:
        return os.lstat(directory).st_mtime_ns
    except OSError:
        return 0


def stored_entries(root: str) -> Iterator[str]:
    """Yield the path of each stored entry; symbolic links are left out."""
    for shard in shards(root):
        yield from _entries_of(shard)


def _entries_of(shard: str) -> list[str]:
    """The paths of the entries in one part of the store."""
    try:
        with os.scandir(shard) as items:
            return [item.path for item in items if _is_entry(item)]
    except OSError:
        return []


def _is_entry(item: os.DirEntry[str]) -> bool:
    named = STORE_KEY.fullmatch(item.name) is not None
    return named and item.is_dir(follow_symlinks=False)


def _entry_size(entry: str, most_views: int) -> int:
    """The bytes of an entry's files, and about those of its views: as many as its manifest has further links.

    At most ``most_views`` count: a user may have made links of his own.
    """
    size = 0
    with suppress(OSError), os.scandir(entry) as files:
        for file in files:
            found = file.stat(follow_symlinks=False)
            size += found.st_size
            if file.name == MANIFEST:
                views = min(found.st_nlink - 1, most_views)
                size += views * GROUP_BYTES
    return size


class LastUse(NamedTuple):
    """A stored entry, and when it was used last."""

    stamp_ns: int
    """The modification time of its manifest, in nanoseconds since the epoch."""
    path: str

    @property
    def used(self) -> float:
        """When the entry was used last, in seconds since the epoch."""
        return self.stamp_ns / 1e9


def last_uses(root: str) -> Iterator[LastUse]:
    """List the stored entries with their last uses; costs a system call for each entry."""
    for entry in stored_entries(root):
        with suppress(OSError):
            yield LastUse(os.lstat(f"{entry}/{MANIFEST}").st_mtime_ns, entry)


def count_anew_later(root: str) -> None:
    """Let the next writer count the store anew, because something else than its writers changes it.

    ``root`` is a real path; no link is followed. Where nobody has counted yet, nothing is made.
    """
    with suppress(OSError), Straight() as disk:
        disk.act(_path(root), _forget_count)


def _forget_count(here: int, name: str) -> None:
    """Set the total in the file of this name, in an open directory, to what nobody has counted."""
    fd, _ = open_regular(name, os.O_RDWR, here)
    try:
        _retried(lambda: _update(fd, 0, draining=None, anew=True, now=0.0))
    finally:
        os.close(fd)


def set_total(root: str, size_bytes: int, now: float | None = None) -> Total | None:
    """Write into the file what was counted at ``now``: seconds since the epoch, by default this moment.

    Returns the total; None where other processes have written the file all the time, for a tenth of a second.

    Raises:
        OSError: the disk refused.
    """
    return _retried(lambda: updated(root, size_bytes, anew=True, now=now))


def _retried(update: Callable[[], Total | None]) -> Total | None:
    """Update the file once no other process does, for which a tenth of a second is enough; None where it was not."""
    for _ in range(_TRIES):  # writers hold the file for microseconds
        total = update()
        if total is not None:
            return total
        time.sleep(_TRY_S)
    return None


def total_bytes(root: str) -> int | None:
    """The bytes that the store takes, as its writers keep them in the file; None where nobody has counted."""
    try:
        total = _parsed(read_limited(_path(root), _LENGTH))
    except OSError:
        return None
    return total.size_bytes if total.counted else None


def _path(root: str) -> str:
    return paths.ours(root, "stats", "size")


_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def updated(
    root: str,
    change: int,
    *,
    draining: bool | None = None,
    anew: bool = False,
    now: float | None = None,
) -> Total | None:
    """Add ``change`` to the total in the file, or (``anew``) set the total to it; return the new total.

    None while another process writes the file: then nothing is changed.

    Raises:
        OSError: the disk refused.
    """
    fd = _open(_path(root))
    try:
        return _update(fd, change, draining=draining, anew=anew, now=now)
    finally:
        os.close(fd)


def _update(
    fd: int, change: int, *, draining: bool | None, anew: bool, now: float | None
) -> Total | None:
    """Change the total in the open file, as `updated`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        old = _parsed(os.pread(fd, _LENGTH, 0))
        size = old.size_bytes + change
        counted_at = old.counted
        if anew:
            size = change
            counted_at = time.time() if now is None else now
        if draining is None:
            draining = old.draining
        new = Total(max(0, size), draining, counted_at)
        if new != old:
            text = json.dumps(new).encode()
            os.pwrite(fd, text.ljust(_LENGTH), 0)
        return new
    except BlockingIOError:
        return None


def _open(path: str) -> int:
    """Open the file, which is made with its directory if it is not there."""
    try:
        return os.open(path, _FILE, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, _FILE, 0o600)


def _parsed(text: bytes) -> Total:
    """The total in the content of the file; nothing, never counted, where the content makes no sense."""
    try:
        size, draining, when = json.loads(text)
        return Total(int(size), bool(draining), float(when))
    except (ValueError, TypeError, OverflowError):
        return Total()
