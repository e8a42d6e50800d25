"""What nobody will use again: remains of killed processes, freed locks, the quarantine, empty directories."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from gpucache.disk import staging
from gpucache.disk.files import STAGED, STALE_S
from gpucache.disk.locks import PROVISION_LOCK, is_free
from gpucache.disk.reading import listed
from gpucache.layout import paths
from gpucache.layout.inductor import BUNDLE
from gpucache.layout.keys import unlinked
from gpucache.store.key_lock import lock_directory
from gpucache.store.quarantine import ASIDE, quarantined

# A directory since Triton 3.2, before beside what it is to be: `runtime/cache.py` `put` of 3.0.0, 3.2.0 and 3.9.0.
_TRITON = re.compile(r"(?:.+\.)?tmp\.pid_[0-9]+_[0-9a-f-]+")


StrayKind = Literal[
    "staging",
    "aside",
    "half-removed",
    "lock",
    "quarantine",
    "empty",
    "triton-temporary",
    "torch-temporary",
]


@dataclass(frozen=True, slots=True)
class Stray:
    """Something in a cache that is no entry."""

    kind: StrayKind
    """``staging``, ``aside``, ``half-removed``, ``lock``, ``quarantine`` and ``empty`` (an empty key directory) are
    what gpucache or Triton's entries left; ``triton-temporary`` and ``torch-temporary`` are what killed writers of
    Triton and torch left."""
    path: str
    size_bytes: int
    modified: float
    """Seconds since the epoch; of the quarantine, when it got there."""
    dead: bool
    """Whether nobody uses it any more: its lock is free, or it is more than an hour old."""


def stray(kind: StrayKind, path: str, dead: bool | None = None) -> Stray | None:
    """The stray at a path, by age dead or alive where nothing tells; None where it is gone."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    dead = time.time() - found.st_mtime > STALE_S if dead is None else dead
    return Stray(kind, path, size_of(path), found.st_mtime, dead)


def size_of(path: str) -> int:
    """Bytes of all files at a path, links not followed; what vanishes meanwhile counts nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    size, waiting = 0, [path]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.path)
                else:
                    with suppress(OSError):
                        size += item.stat(follow_symlinks=False).st_size
    return size


def kind_of(name: str) -> StrayKind | None:
    """What a name in a device directory or a key directory stands for; None for no stray."""
    if "tmp" not in name:
        return None
    if name.startswith(ASIDE):
        return "aside"
    if _TRITON.fullmatch(name):
        return "triton-temporary"
    return "torch-temporary" if BUNDLE.fullmatch(name) else None


def of_root(root: str) -> Iterator[Stray]:
    """What lies in our own directories of a root: staging, locks, the quarantine. Removes nothing."""
    if unlinked(root) is None:
        return
    for path in _listed(paths.ours(root, "tmp")):
        name = os.path.basename(path)
        if not name.startswith((*staging.PREFIXES, STAGED)):
            continue  # nothing of ours
        found = stray(
            "staging", path, staging.is_dead(path) if name.startswith(staging.PREFIXES) else None
        )
        if found is not None:
            yield found
    for path in _listed(lock_directory(root)):
        if path.endswith(".lock") and os.path.basename(path) != PROVISION_LOCK:
            found = stray("lock", path, is_free(path))
            if found is not None:
                yield found
    for path in _listed(paths.ours(root, "quarantine")):
        found = stray("quarantine", path, True)
        if found is not None:
            yield replace(found, modified=quarantined(path) or found.modified)


def _listed(directory: str) -> list[str]:
    return [] if os.path.islink(directory) else listed(directory)
