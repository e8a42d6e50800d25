"""Evict one entry of the store, with its views in the device directories, or something of the quarantine.

`recency` chose which, `limit` says when.
"""

from __future__ import annotations

import errno
import os
import time

from gpucache.disk.files import size_of
from gpucache.disk.within import Straight
from gpucache.layout.keys import KEY, view_key
from gpucache.log import INFO, tell
from gpucache.store.counting import LastUse
from gpucache.store.manifest import MANIFEST
from gpucache.store.quarantine import Damaged
from gpucache.store.recency import is_recent
from gpucache.store.removal import InUse, Target, delete, refuse_mounts, remove
from gpucache.store.size import GROUP_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def evict(
    entry: LastUse,
    devices: Iterable[str],
    locks: str,
    mounted: Sequence[str],
    grace_s: float,
    disk: Straight,
) -> int:
    """Remove an entry and its views; return the bytes that the entry was counted with, or 0 where the entry stays.

    An entry stays that was used since it was listed, or within ``grace_s``, or is in use now. ``devices`` are the paths
    of the device directories, ``locks`` is the root's directory of locks, ``mounted`` are the mount points below the
    root. All paths are free of links.
    """
    try:
        targets = _targets(entry.path, devices, disk)
    except InUse:
        return 0
    if not targets:
        return 0
    inode, stamp_ns = targets[0].mark
    if stamp_ns != entry.stamp_ns:
        return 0  # used since it was listed, so that others come first
    now = time.time()
    for target in targets:  # a copy on another file system has a stamp of its own
        used = target.mark[1] / 1e9
        if is_recent(used, now, grace_s):
            return 0
    key = os.path.basename(entry.path)
    try:
        refuse_mounts([target.path for target in targets], mounted)
        stored, *_ = remove(key, targets, locks, disk)
    except InUse:
        return 0
    freed = stored.logical_bytes
    for view in targets[1:]:
        if view.mark[0] == inode:
            freed += GROUP_BYTES
    tell(
        INFO,
        "evicted: %s, %d bytes, not used since %.0f",
        entry.path,
        freed,
        entry.used,
    )
    return freed


def discard(damaged: Damaged, mounted: Sequence[str], disk: Straight) -> int:
    """Delete what is in the quarantine; return the bytes that it was counted with, or 0 where it stays.

    ``mounted`` are the mount points below the root.
    """
    try:
        refuse_mounts([damaged.path], mounted)
    except InUse:
        return 0
    size_bytes = size_of(damaged.path)
    delete(damaged.path, disk)
    if disk.lexists(damaged.path):
        return 0
    tell(INFO, "evicted from the quarantine: %s, %d bytes", damaged.path, size_bytes)
    return size_bytes


def _targets(entry: str, devices: Iterable[str], disk: Straight) -> list[Target]:
    """The stored entry, first, and its views, as they are now; nothing where the entry is gone.

    Raises:
        InUse: one of them is a link.
    """
    key = os.path.basename(entry)
    stored = _target(entry, disk)
    if stored is None:
        return []
    shares_key = KEY.fullmatch(key) is None  # several single files have their views under one key
    targets = [stored]
    for device in devices:
        view = _target(f"{device}/{view_key(key)}", disk)
        if view is None:
            continue
        linked = view.mark[0] == stored.mark[0]
        if linked or not shares_key:
            targets.append(view)
    return targets


def _target(path: str, disk: Straight) -> Target | None:
    """A directory with a manifest, as it is now; None where it has none.

    Raises:
        InUse: a link is there.
    """
    try:
        found = disk.lstat(f"{path}/{MANIFEST}")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InUse(f"{error.filename} is a symbolic link") from error
        return None
    return Target(path, (found.st_ino, found.st_mtime_ns), ours=True)
