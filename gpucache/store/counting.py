"""Count what `GPUCACHE_MAX_SIZE` bounds: the store, views of its entries, the quarantine. And list last uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk import capabilities
from gpucache.disk.files import size_of, sweep_old
from gpucache.kernels.group import GROUP_BYTES
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE, STORE_KEY, device_directories, shards
from gpucache.store.foreign import foreign_directories, keys_in, store_key_in
from gpucache.store.manifest import MANIFEST
from gpucache.store.quarantine import in_quarantine
from gpucache.store.readers import is_read_by_others, last_read_ns

_PASSES = 3


def counted(root: str, rest: Callable[[], object] | None = None) -> int:
    """Count the bytes of all stored entries and, about, of their views, and of the quarantine.

    What vanishes meanwhile counts nothing.

    ``rest`` is called after every part of the store, and may wait. Parts that change while the others are counted are
    counted again, so that entries put or removed meanwhile are right in the sum. Approximate are views that are made
    meanwhile, and what changes too fast for two more passes, or within one tick of the file system's clock.
    """
    foreign = foreign_directories(os.path.realpath(root))
    most_views = len(device_directories(root)) + len(foreign)
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
    for damaged in in_quarantine(root):
        total += size_of(damaged.path)
    for directory in (*_unlinkable(root), *(one.path for one in foreign)):
        total += _copies_size(os.path.realpath(root), directory)
    for shard in shards(root):
        total += sizes.get(shard, 0)
    return total


def _unlinkable(root: str) -> list[str]:
    """The paths of the device directories of a root where views are copies, as far as that is known."""
    able = capabilities.known(root)
    store = paths.ours(root, "store")
    found = []
    for _, path in device_directories(root):
        with suppress(OSError):
            elsewhere = os.stat(path).st_dev != os.stat(store).st_dev
            if elsewhere or (able is not None and not able.hard_links):
                found.append(path)
    return found


def _copies_size(root: str, directory: str) -> int:
    """The bytes of the views in a device directory that are copies: linked ones are counted with their entries."""
    size = 0
    for key in keys_in(directory):
        path = f"{directory}/{key}"
        with suppress(OSError):
            is_alone = os.lstat(f"{path}/{MANIFEST}").st_nlink == 1
            if is_alone and store_key_in(path, root) is not None:
                size += size_of(path)
    return size


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
    read_ns: int = 0
    """When another user may have read it last (`store.readers`), likewise; 0 in a root that others cannot read."""

    @property
    def used(self) -> float:
        """When the entry was used last, in seconds since the epoch."""
        return max(self.stamp_ns, self.read_ns) / 1e9


def last_uses(root: str) -> Iterator[LastUse]:
    """List the stored entries with their last uses; costs a system call for each entry.

    In a root that others may read, one more for each of its files.
    """
    has_readers = is_read_by_others(root)
    for entry in stored_entries(root):
        with suppress(OSError):
            stamp_ns = os.lstat(f"{entry}/{MANIFEST}").st_mtime_ns
            yield LastUse(stamp_ns, entry, last_read_ns(entry) if has_readers else 0)
