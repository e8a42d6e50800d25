"""Evict one entry of the store, with its views in the device directories, or something of the quarantine.

`recency` chose which, `limit` says when.
"""

from __future__ import annotations

import errno
import os
import time
from typing import NamedTuple

from gpucache.disk import mounts
from gpucache.disk.files import size_of
from gpucache.disk.within import Straight
from gpucache.kernels.group import GROUP_BYTES
from gpucache.layout.keys import KEY, device_directories, view_key
from gpucache.log import INFO, tell
from gpucache.store.counting import LastUse
from gpucache.store.deletion import delete
from gpucache.store.foreign import Foreign, foreign_directories, is_removable, view_at
from gpucache.store.manifest import MANIFEST
from gpucache.store.quarantine import Damaged
from gpucache.store.recency import is_recent, plausible
from gpucache.store.removal import InUse, Target, refuse_mounts, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Places(NamedTuple):
    """Where the views of a root's entries are, as one turn of eviction finds them."""

    root: str
    """A real path."""
    devices: tuple[str, ...]
    """The paths of the device directories."""
    foreign: tuple[Foreign, ...]
    """The device directories outside the root from which this process may remove views."""
    mounted: tuple[str, ...]
    """The mount points below the root, and below the foreign directories."""

    @classmethod
    def of(cls, root: str) -> Places:
        """Look for the places of a root, a real path."""
        devices = tuple(path for _, path in device_directories(root))
        foreign = tuple(filter(is_removable, foreign_directories(root)))
        mounted = mounts.below([root, *(one.path for one in foreign)])
        return cls(root, devices, foreign, tuple(mounted))


def evict(
    entry: LastUse,
    places: Places,
    locks: str,
    grace_s: float,
    disk: Straight,
) -> int:
    """Remove an entry and its views; return the bytes that the entry was counted with, or 0 where the entry stays.

    An entry stays that was used since it was listed, or within ``grace_s``, or is in use now. ``locks`` is the root's
    directory of locks. All paths are free of links.
    """
    try:
        targets = _targets(entry.path, places, disk)
    except (InUse, OSError):  # as below
        return 0
    if not targets:
        return 0
    inode, stamp_ns = targets[0].mark
    if stamp_ns != entry.stamp_ns:
        return 0  # used since it was listed, so that others come first
    now = time.time()
    # A copy on another file system has a stamp of its own, and so has a view that got the manifest of another moment.
    latest_ns = max(target.mark[1] for target in targets)
    if is_recent(latest_ns / 1e9, now, grace_s):
        return 0
    if plausible(latest_ns / 1e9, now) > entry.used and _stamped(entry.path, latest_ns, disk):
        return 0  # others come first, now that its own manifest says so
    key = os.path.basename(entry.path)
    try:
        refuse_mounts([target.path for target in targets], places.mounted)
        stored, *views = remove(key, targets, locks, disk)
    except (InUse, OSError):  # what the disk refuses here, it may not refuse of the next entry
        return 0
    linked = [view for view in targets[1:] if view.mark[0] == inode]
    # More than is counted of linked views goes with copies, which are counted with all their bytes.
    freed = max(
        stored.logical_bytes + GROUP_BYTES * len(linked),
        stored.physical_bytes + sum(view.physical_bytes for view in views),
    )
    tell(
        INFO,
        "evicted: %s, %d bytes, not used since %.0f",
        entry.path,
        freed,
        entry.used,
        key=key,
    )
    return freed


def _stamped(entry: str, used_ns: int, disk: Straight) -> bool:
    """Stamp the manifest of a stored entry with a use of one of its views; return whether that could be done.

    ``used_ns`` is in nanoseconds since the epoch.
    """

    def stamp(parent: int, name: str) -> bool:
        try:
            os.utime(name, ns=(used_ns, used_ns), dir_fd=parent, follow_symlinks=False)
        except PermissionError:  # of another member's file the time of now alone can be set
            os.utime(name, dir_fd=parent, follow_symlinks=False)
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return found.st_mtime_ns >= used_ns

    try:
        return disk.act(f"{entry}/{MANIFEST}", stamp)
    except OSError:
        return False  # where no times can be set, the entry goes by the one that its manifest has


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


def _targets(entry: str, places: Places, disk: Straight) -> list[Target]:
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
    for device in places.devices:
        view = _target(f"{device}/{view_key(key)}", disk)
        if view is None:
            continue
        linked = view.mark[0] == stored.mark[0]
        if linked or not shares_key:
            targets.append(view)
    for foreign in places.foreign:
        seen = view_at(foreign, places.root, key)
        if seen is not None:
            targets.append(Target(seen.path, seen.mark, ours=True))
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
