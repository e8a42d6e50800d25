"""`Stray`: what lies in a cache and is no entry: remains of killed processes, locks, the quarantine.

Is listed and counted here, and removed by `gpucache.upkeep.execution`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gpucache.disk import staging
from gpucache.disk.files import STAGED, STALE_S, size_of
from gpucache.disk.lock_place import LockPlace, open_lock_directory
from gpucache.disk.locks import ROOTS_LOCKS, is_free, serves
from gpucache.disk.reading import listed
from gpucache.disk.record_use import unused_records
from gpucache.disk.within import Straight
from gpucache.layout import paths
from gpucache.layout.inductor import BUNDLE
from gpucache.layout.keys import ASIDE, unlinked
from gpucache.store.quarantine import quarantined

# A directory since Triton 3.2, before beside what it is to be: `runtime/cache.py` `put` of 3.0.0, 3.2.0 and 3.9.0.
_TRITON = re.compile(r"(?:.+\.)?tmp\.pid_[0-9]+_[0-9a-f-]+")


StrayKind = Literal[
    "staging",
    "aside",
    "half-removed",
    "lock",
    "quarantine",
    "empty",
    "record",
    "triton-temporary",
    "torch-temporary",
]


@dataclass(frozen=True, slots=True)
class Stray:
    """A file or directory in a cache that belongs to no entry."""

    kind: StrayKind
    """``staging``, ``aside``, ``half-removed`` (or half made), ``lock``, ``quarantine`` and ``empty`` (an empty key
    directory) are what gpucache or Triton's entries left; ``record`` is that of a host which is gone;
    ``triton-temporary`` and ``torch-temporary`` are what killed writers of Triton and torch left."""
    path: str
    size_bytes: int
    modified: float
    """Seconds since the epoch; of the quarantine, when it got there."""
    dead: bool
    """Whether no process uses it any more: its lock is free, or it is more than an hour old."""


def stray(kind: StrayKind, path: str, dead: bool | None = None) -> Stray | None:
    """Look at the stray at a path; None where it is gone. ``dead``: whether no process uses it; by default, by age."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if dead is None:
        dead = time.time() - found.st_mtime > STALE_S
    size_bytes = size_of(path)
    return Stray(kind, path, size_bytes, found.st_mtime, dead)


def kind_of(name: str) -> StrayKind | None:
    """Tell by a name in a device directory or a key directory which stray it stands for; None for no stray."""
    if "tmp" not in name:
        return None
    if name.startswith(ASIDE):
        return "aside"
    if _TRITON.fullmatch(name):
        return "triton-temporary"
    return "torch-temporary" if BUNDLE.fullmatch(name) else None


def of_root(root: str) -> Iterator[Stray]:
    """List the strays in a root's ``gpucache/v1``: staging, locks, the quarantine, records. Removes nothing."""
    if unlinked(root) is None:
        return
    yield from _staged(root)
    yield from _locks(root)
    yield from _quarantined(root)
    for path in unused_records(root):
        record = stray("record", path, True)
        if record is not None:
            yield record


def _staged(root: str) -> Iterator[Stray]:
    """List what writers collect or have left. A lock tells if a staging area is in use; of a file, only its age."""
    directory = paths.ours(root, "tmp")
    for path in _listed(directory):
        name = os.path.basename(path)
        if name.startswith(staging.PREFIXES):
            dead = staging.is_dead(path)
            found = stray("staging", path, dead)
        elif name.startswith(STAGED):
            found = stray("staging", path)
        else:
            continue  # gpucache makes no such file
        if found is not None:
            yield found


def _locks(root: str) -> Iterator[Stray]:
    """List the lock files of keys; a lock that nobody holds is dead."""
    directory = LockPlace(root).found()
    for name in _names_of_locks(directory):
        if name.endswith(".lock") and name not in ROOTS_LOCKS:
            path = f"{directory}/{name}"
            found = stray("lock", path, is_free(path) and not serves(path))
            if found is not None:
                yield found


def _names_of_locks(directory: str) -> list[str]:
    """The names in a directory of locks; none where it is a link, another user's, or not there."""
    try:
        with Straight() as disk:
            here = open_lock_directory(directory, disk)
    except OSError:
        return []
    try:
        return sorted(os.listdir(here))
    finally:
        os.close(here)


def _quarantined(root: str) -> Iterator[Stray]:
    directory = paths.ours(root, "quarantine")
    for path in _listed(directory):
        found = stray("quarantine", path, True)
        if found is not None:
            since = quarantined(path) or found.modified
            yield replace(found, modified=since)


def _listed(directory: str) -> list[str]:
    if os.path.islink(directory):
        return []
    return listed(directory)
