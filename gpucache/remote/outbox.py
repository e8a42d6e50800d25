"""The outbox: which entries a node is still to give to the remote, as one empty file each, named by the entry's key.

A rank that has compiled a kernel leaves a *marker* and goes on; the node's pusher (`pusher`) gives the entry to the
remote and takes the marker away, in this order. So a pusher may be killed at any instant, and nothing is lost. A marker
names an entry of the root's store, from which any node may push: what a node has left for a day, which by then is gone
or has started again, is taken over by the next pusher of any other, and after 7 days nobody wants it.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import make_below_root
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.sharing import is_shared_by_group, new_file
from gpucache.layout import paths
from gpucache.layout.keys import STORE_KEY, unlinked
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_MARKERS = 1000
"""So many markers a node has; the oldest goes when another is left."""
FORGOTTEN_S = 7 * DAY_S
"""After so long nobody wants a marker of another node."""
LEAST_COMPILE_S = 0.1
"""What was compiled in less is left to those who miss it: to ask for it would take as long."""
_TRIES = 3


class Marker(Value):
    """One marker as it was listed."""

    node: str
    """The node that has left it."""
    key: str
    """The entry's key in the store."""
    left: float
    """When the marker was left, in seconds since the epoch."""


def leave(root: str, key: str) -> None:
    """Leave a marker for an entry of this root's store, and drop this node's oldest where there are too many.

    Any number of processes may leave markers at once. Where one is there, it stays.

    Raises:
        OSError: the disk refused.
    """
    directory = paths.ours(root, "outbox", node_id())
    try:
        os.close(_made(directory, key))
    except FileExistsError:  # perhaps another user's
        return
    if len(os.listdir(directory)) > MOST_MARKERS:
        _drop_oldest(root)


def _made(directory: str, key: str) -> int:
    """A descriptor of the new marker, whose directory is made where it is not there.

    Raises:
        FileExistsError: the marker is there.
        OSError: the disk refused.
    """
    path = f"{directory}/{key}"
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return new_file(path, os.O_WRONLY)
        make_below_root(directory)  # another node may have swept it since
    return new_file(path, os.O_WRONLY)


def _drop_oldest(root: str) -> None:
    for marker in own(root)[:-MOST_MARKERS]:
        take_away(root, marker)


def own(root: str) -> list[Marker]:
    """The markers that this node has left, oldest first; where a group shares the root, those of this user alone.

    Another member's go to his remote, by his pusher: what is pushed is signed, and vouched for, by who does so.
    """
    return sorted(_for_me(root, node_id()), key=lambda marker: marker.left)


def of_others(root: str) -> list[Marker]:
    """The markers that other nodes have left for a day, and that are not too old for anybody (`sweep`).

    Reads the directories of all nodes: to be asked once, and not while something is waited for.
    """
    found = []
    others = _other_nodes(root)
    now = _clock_of_disk(root) if others else 0.0
    for node in others:
        for marker in _for_me(root, node):
            if DAY_S < now - marker.left <= FORGOTTEN_S:
                found.append(marker)
    return found


def sweep(root: str) -> None:
    """Remove what other nodes have left for a week, and their empty directories. Any number of processes may sweep."""
    others = _other_nodes(root)
    now = _clock_of_disk(root) if others else 0.0
    for node in others:
        for marker in _of_node(root, node):
            if now - marker.left > FORGOTTEN_S:
                take_away(root, marker)
        # One that is not empty stays; and a marker that finds none makes it again.
        with suppress(OSError):
            os.rmdir(paths.ours(root, "outbox", node))


def take_away(root: str, marker: Marker) -> None:
    """Remove a marker; nothing where it is gone, or the disk refuses."""
    with suppress(OSError):
        here = os.open(paths.ours(root, "outbox", marker.node), DIRECTORY)
        try:
            os.unlink(marker.key, dir_fd=here)
        finally:
            os.close(here)


def count(root: str) -> tuple[int, float | None]:
    """How many markers all nodes have left, and when the oldest of them was, in seconds since the epoch."""
    times = []
    for node in [node_id(), *_other_nodes(root)]:
        times += [marker.left for marker in _of_node(root, node)]
    return len(times), min(times, default=None)


def _clock_of_disk(root: str) -> float:
    """The time of now as the disk gives it to files: on a mount of several nodes that of the server.

    A node whose own clock is wrong would take what others have left just now for a week old. Where no file can be
    touched, the node's own.
    """
    directory = paths.ours(root, "outbox", node_id())
    try:
        os.utime(directory)
        return os.stat(directory).st_mtime
    except OSError:
        return time.time()


def _other_nodes(root: str) -> list[str]:
    directory = unlinked(root, "outbox")
    try:
        names = [] if directory is None else os.listdir(directory)
    except OSError:
        return []
    return sorted(name for name in names if name != node_id() and _is_node(name))


def _is_node(name: str) -> bool:
    return len(name) == 8 and name.isascii() and name.isalnum()


def _for_me(root: str, node: str) -> Iterator[Marker]:
    """The markers of a node that this user is to push."""
    return _of_node(root, node, os.geteuid() if is_shared_by_group(root) else None)


def _of_node(root: str, node: str, uid: int | None = None) -> Iterator[Marker]:
    """The markers of a node, in any order; what is no file, or has no entry's key for its name, is none.

    With a ``uid`` those of that user alone.
    """
    if unlinked(root, "outbox") is None:
        return
    try:
        here = os.open(paths.ours(root, "outbox", node), DIRECTORY)
    except OSError:
        return
    try:
        for name in os.listdir(here):
            if not STORE_KEY.fullmatch(name):
                continue
            with suppress(OSError):
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and uid in (None, found.st_uid):
                    yield Marker(node, name, found.st_mtime)
    except OSError:
        return
    finally:
        os.close(here)
