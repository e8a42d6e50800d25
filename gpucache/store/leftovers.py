"""Complete what killed removals have left half-done: it is no entry any more, takes room, and nobody would evict it.

`gpucache prune` sees the same as strays. Here the limit does so without anybody's asking, whenever it counts the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import time

from gpucache.disk.files import STALE_S, sweep_old
from gpucache.disk.within import Straight
from gpucache.layout.keys import ASIDE, device_directories, view_key
from gpucache.store.counting import stored_entries
from gpucache.store.foreign import foreign_directories, is_removable, keys_in
from gpucache.store.manifest import CONDEMNED, MANIFEST
from gpucache.store.removal import InUse, finish, put_back


def complete(root: str, locks: str, rest: Callable[[], object]) -> None:
    """Complete the removals that were killed more than an hour ago, in the store and in all device directories.

    ``root`` is a real path, ``locks`` its directory of locks. ``rest`` is called between the steps, and may wait.
    """
    with Straight() as disk:
        for path in _half_removed(root, rest):
            with suppress(InUse, OSError):
                modified = disk.lstat(path).st_mtime
                if time() - modified <= STALE_S:
                    continue
                if _has_view(root, path):
                    put_back(path, locks, disk)
                else:
                    finish(path, modified, locks, disk)


def _half_removed(root: str, rest: Callable[[], object]) -> Iterator[str]:
    """Yield the directories whose manifest a removal has renamed, in the store and among the views without an entry."""
    stored = set()
    for entry in stored_entries(root):
        if _is_half_removed(entry):
            yield entry
        else:
            stored.add(view_key(os.path.basename(entry)))
    rest()
    for _, device in device_directories(root):
        with suppress(OSError):
            sweep_old(device, ASIDE)
        yield from _without_entry(device, stored)
        rest()
    for foreign in foreign_directories(root):
        if not is_removable(foreign):
            continue
        for path in _without_entry(foreign.path, stored):
            with suppress(OSError):
                if os.lstat(path).st_uid in foreign.users:
                    yield path


def _has_view(root: str, path: str) -> bool:
    """Whether a view has the very manifest still that a removal has renamed in the entry: it was killed early.

    Without its entry the view would be evicted by nobody.
    """
    key = view_key(os.path.basename(path))
    condemned = os.lstat(f"{path}/{CONDEMNED}")
    devices = [device for _, device in device_directories(root)]
    devices += [foreign.path for foreign in foreign_directories(root)]
    for device in devices:
        with suppress(OSError):
            if os.path.samestat(condemned, os.lstat(f"{device}/{key}/{MANIFEST}")):
                return True
    return False


def _without_entry(device: str, stored: set[str]) -> Iterator[str]:
    """Yield the half-removed views of a device directory whose entries are gone; others are seen with their entries."""
    for key in keys_in(device):
        path = f"{device}/{key}"
        if key not in stored and _is_half_removed(path):
            yield path


def _is_half_removed(path: str) -> bool:
    """Whether a directory has a renamed manifest, and none in its place."""
    return os.path.lexists(f"{path}/{CONDEMNED}") and not os.path.lexists(f"{path}/{MANIFEST}")
