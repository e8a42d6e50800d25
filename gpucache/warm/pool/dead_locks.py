"""Removes the lock files that workers leave which are killed in the middle of a compile."""

from __future__ import annotations

import os
from contextlib import suppress

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import is_free
from gpucache.errors import GpuCacheError
from gpucache.layout.keys import STORE_KEY
from gpucache.store.key_lock import remove_if_free


def remove_dead_locks(root: str) -> None:
    """Remove the lock files of keys that nobody holds, as workers leave them that were killed. Never raises."""
    with suppress(GpuCacheError, OSError):
        directory = LockPlace(root).directory()
        for name in os.listdir(directory):
            key = name.removesuffix(".lock")
            if key != name and STORE_KEY.fullmatch(key) and is_free(f"{directory}/{name}"):
                remove_if_free(f"{directory}/{name}")
