"""Move damaged entries out of the way, to the root's ``quarantine``, for whoever wants to look at them.

What lies there counts to the size that `GPUCACHE_MAX_SIZE` bounds, and is the first to go when room is needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from gpucache.disk.capabilities import is_refusal
from gpucache.disk.files import make_below_root, remove_tree, size_of
from gpucache.disk.reading import listed
from gpucache.disk.sharing import modes_in, set_directory_mode
from gpucache.disk.within import Straight
from gpucache.kernels.group import GROUP, GROUP_BYTES
from gpucache.layout import paths
from gpucache.layout.keys import ASIDE, unlinked
from gpucache.store.manifest import MANIFEST
from gpucache.store.size import add_straight, updated


def quarantine(root: str, path: str, disk: Straight | None = None) -> bool:
    """Move a damaged directory to the quarantine; return whether it is kept there.

    A directory on another file system than the quarantine is removed. ``disk`` is for whoever may follow no link.

    Raises:
        OSError: the directory could not be moved.
    """
    directory = paths.ours(root, "quarantine")
    make_below_root(directory)
    in_store = path.startswith(f"{paths.ours(root, 'store')}/")
    if disk is None:
        return _moved(path, directory, in_store, partial(updated, root))
    parent, name = os.path.split(path)
    add = partial(add_straight, root, disk=disk)
    with disk.held(parent) as beside, disk.held(directory) as put_away:
        return _moved(f"{beside}/{name}", put_away, in_store, add)


def _moved(path: str, directory: str, in_store: bool, add: Callable[[int], object]) -> bool:
    """Move a damaged directory into the quarantine, as `quarantine`.

    ``in_store``: it was counted as an entry. ``add`` adds to the size of the store.
    """
    where = f"{directory}/{os.path.basename(path)}.{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, where)
    except FileNotFoundError:
        return False
    except OSError as error:
        if not is_refusal(error):
            raise
        size_bytes = size_of(path)
        if not _moved_files(path, where):
            remove_in_place(path)
            _added(add, -size_bytes if in_store else -GROUP_BYTES)
            return False
    if not in_store:  # of a view little was counted, but all of an entry of the store
        _added(add, size_of(where) - GROUP_BYTES)
    return True


def _added(add: Callable[[int], object], change: int) -> None:
    """Add to the size of the store. What another process's writing, or the disk, forbids is found by the next count."""
    with suppress(OSError):
        add(change)


def _moved_files(path: str, where: str) -> bool:
    """Rename the files of a directory, which cannot be renamed itself, to a new one; return whether all are there."""
    try:
        os.mkdir(where, 0o700)
        set_directory_mode(where, modes_in(os.path.dirname(where)))
        for name in _unmaking(os.listdir(path)):
            os.rename(f"{path}/{name}", f"{where}/{name}")
        os.rmdir(path)
    except OSError:
        with suppress(OSError):
            os.rmdir(where)  # unless something is kept there
        return False
    return True


def _unmaking(names: Iterable[str]) -> list[str]:
    """The names of files in the order in which they go: first what makes a directory an entry to us, or to Triton."""
    return sorted(names, key=lambda name: (name != MANIFEST, not name.startswith(GROUP), name))


def remove_in_place(path: str) -> None:
    """Remove a directory that cannot be moved to the quarantine: rename it where it lies, if possible, and delete it.

    Where a directory cannot be renamed, its manifest goes first, and its group, so that nobody takes the rest for an
    entry: on mounts of object stores, and of a directory in an image's layer, of which overlayfs refuses every rename
    (``EXDEV``, unless ``redirect_dir`` is on).

    Raises:
        OSError: the directory stays.
    """
    beside = f"{os.path.dirname(path)}/{ASIDE}{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, beside)
    except OSError as error:
        if not is_refusal(error):
            raise
        beside = path
        for name in _unmaking(os.listdir(path)):
            if name == MANIFEST or name.startswith(GROUP):
                os.unlink(f"{path}/{name}")
    remove_tree(beside)


def quarantined(path: str) -> float | None:
    """When a directory in the quarantine was moved there (seconds since the epoch); None if its name does not tell."""
    parts = os.path.basename(path).rsplit(".", 2)
    try:
        return int(parts[1], 16) / 1e9
    except (IndexError, ValueError):
        return None


class Damaged(NamedTuple):
    """A directory in the quarantine."""

    since: float
    """When it was moved there, in seconds since the epoch."""
    path: str


def in_quarantine(root: str) -> list[Damaged]:
    """List what is in the quarantine of a root, the oldest first. No link is followed; what vanishes is left out."""
    directory = unlinked(root, "quarantine")
    if directory is None:
        return []
    found = []
    for path in listed(directory):
        with suppress(OSError):
            since = quarantined(path)
            if since is None:
                since = os.lstat(path).st_mtime
            found.append(Damaged(since, path))
    return sorted(found)
