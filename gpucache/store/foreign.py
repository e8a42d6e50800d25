"""Device directories elsewhere that have views of a root's store: remembered when a view is made, found again here.

vLLM, SGLang and Helion set `TRITON_CACHE_DIR` to places of their own: outside the root, or below it where nobody looks
for views (``<root>/helion/triton/0``). A view there keeps the bytes of an entry that is
evicted or pruned, unless it goes as well. So the plug-in leaves a small file in ``gpucache/v1/foreign`` for each such
directory, once a process: its path, named by node, user and a digest of the path. A user has 1,000 at most; those of
the oldest use are dropped. A directory that is fresh on purpose is not shared, and never remembered.

The list is no order to delete: anybody who may write to the root can put a path there. Seen, counted and removed in a
foreign directory are only directories that are named like a key, belong to the user whose file says so, and have either
the very manifest, or a very file, of the store's entry, the same inode, or a manifest that names this key and this
root. So whoever plants a path loses views of his own at most. The rest of a foreign directory is neither listed nor
counted.

Beside any number of processes of any node. A path of another node may lead nowhere here, or to another file system.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
import time
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.door import DIRECTORY, open_regular
from gpucache.disk.files import inside, make_below_root, write_whole
from gpucache.disk.node import is_of_this_node, node_id
from gpucache.disk.refusal import may
from gpucache.disk.within import Straight
from gpucache.errors import GpuCacheError
from gpucache.layout import paths
from gpucache.layout.keys import KEY, unlinked, view_key
from gpucache.store.manifest import MANIFEST, Manifest, entry_path, read_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION = 1
_MOST = 1000
_MOST_READ = 20 * _MOST
"""Of how many files the list consists at most, whoever has put them there."""
_MOST_BYTES = 2**15
"""More than a note has: a path has 4,096 bytes at most (Linux's `PATH_MAX`), of which each may be six letters."""
_NAME = re.compile(r"[0-9a-f]{8}\.([0-9]{1,10})\.[0-9a-f]{32}\.json")
_ELSEWHERE_S = 30 * 86400.0
"""After so long without a new view the directory of another node is forgotten, which cannot be looked for here."""


class Foreign(NamedTuple):
    """A device directory that is none of `layout.keys.device_directories`."""

    path: str
    """A real path, when it was written down."""
    users: frozenset[int]
    """The ids of the users who have made views there: only what belongs to one of them is theirs."""


# ---- remembering

_remembered: set[tuple[str, str]] = set()
"""The roots and directories for which this process has done so."""


def remember(root: str, directory: str) -> None:
    """Note that there is a view of the root's store in a device directory, unless that is one that the root lists.

    Costs a look into a set but for the first time in a process. Never raises for what the disk says.
    """
    if (root, directory) in _remembered:
        return
    _remembered.add((root, directory))
    with suppress(OSError, GpuCacheError):
        path = os.path.realpath(directory)
        if _is_elsewhere(path, os.path.realpath(root)):
            _note(root, path)


def _is_elsewhere(path: str, root: str) -> bool:
    """Whether a directory is one that nobody finds by the root; both are real paths. The store is no place of views."""
    triton = paths.triton_directory(root)
    if path in (root, triton) or os.path.dirname(path) == triton:
        return False
    return not inside(path, f"{root}/gpucache")


def _note(root: str, path: str) -> None:
    place = paths.ours(root, "foreign")
    user = os.geteuid()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    note = f"{place}/{node_id()}.{user}.{digest[:32]}.json"
    said = json.dumps({"version": _VERSION, "path": path}).encode()
    if _read(note) == (said, user):
        os.utime(note)
        return
    make_below_root(place)
    write_whole(note, said, paths.ours(root, "tmp"))
    _drop_oldest(place, user)


def _read(note: str) -> tuple[bytes, int] | None:
    """The content of a note, and the user who has written it; None where there is none, or it is none of ours."""
    try:
        fd, found = open_regular(note)
    except OSError:
        return None
    try:
        return os.read(fd, _MOST_BYTES), found.st_uid
    except OSError:
        return None
    finally:
        os.close(fd)


def _drop_oldest(place: str, user: int) -> None:
    """Remove what is over a user's number of notes."""
    used = []
    for name in _notes_in(place):
        if _user_of(name) == user:
            with suppress(OSError):
                modified_ns = os.lstat(f"{place}/{name}").st_mtime_ns
                used.append((modified_ns, name))
    used.sort(reverse=True)
    for _, name in used[_MOST:]:
        with suppress(OSError):
            os.unlink(f"{place}/{name}")


def _notes_in(place: str) -> list[str]:
    """The names of the notes in the list; none where there is no list."""
    try:
        with os.scandir(place) as items:
            found = itertools.islice(items, _MOST_READ)
            return [item.name for item in found if _NAME.fullmatch(item.name)]
    except OSError:
        return []


def _user_of(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


# ---- finding again


def foreign_directories(root: str) -> list[Foreign]:
    """The foreign device directories of a root that are there now, by path; ``root`` is a real path. Never raises."""
    users: dict[str, set[int]] = {}
    for note, path in _notes(root):
        user = _user_of(note)
        # By one path each: else 20,000 links to one large directory would be 20,000 directories to look through.
        if user is not None and _is_directory(path) and os.path.realpath(path) == path:
            users.setdefault(path, set()).add(user)
    return [Foreign(path, frozenset(users[path])) for path in sorted(users)]


def forget_gone(root: str) -> None:
    """Forget the foreign directories that are no more; those of another node after 30 days without a new view.

    ``root`` is a real path. Never raises.
    """
    place = unlinked(root, "foreign")
    if place is None:
        return
    with Straight() as disk:  # nobody may lead the removal elsewhere
        for name, path in _notes(root):
            if _is_directory(path):
                continue
            note = f"{place}/{name}"
            with suppress(OSError):
                age_s = time.time() - disk.lstat(note).st_mtime
                if is_of_this_node(name) or age_s > _ELSEWHERE_S:
                    disk.unlink(note)


def _notes(root: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each sound note, and the path that it tells of."""
    place = unlinked(root, "foreign")
    if place is None:
        return
    for name in _notes_in(place):
        found = _read(f"{place}/{name}")
        if found is None:
            continue
        data, user = found
        path = _path_in(data)
        if user == _user_of(name) and path is not None and _is_elsewhere(path, root):
            yield name, path


def _path_in(data: bytes) -> str | None:
    """The path in the content of a note; None where the content makes no sense."""
    try:
        said = json.loads(data)
        path = said["path"]
        if said["version"] != _VERSION or not os.path.isabs(path) or "\0" in path:
            return None
        os.fsencode(path)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_plain = os.path.normpath(path) == path and not path.startswith("//")
    return path if is_plain else None


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


# ---- what is ours there


class View(NamedTuple):
    """A view in a foreign directory."""

    path: str
    mark: tuple[int, int]
    """Inode and modification time (ns) of its manifest."""
    is_copy: bool
    """Whether it is on another file system than the store, or on one without hard links."""


def view_at(foreign: Foreign, root: str, store_key: str) -> View | None:
    """The view that a foreign directory has of an entry of the store; None where what is there is no such view.

    ``root`` is a real path. The store may have the entry no more: then only a copy can be told for its view.
    """
    key = view_key(store_key)
    path = f"{foreign.path}/{key}"
    try:
        here = os.open(path, DIRECTORY)
    except OSError:
        return None
    try:
        if os.fstat(here).st_uid not in foreign.users:
            return None
        found = os.stat(MANIFEST, dir_fd=here, follow_symlinks=False)
        entry = entry_path(root, store_key)
        is_linked = _is_manifest_of(found, entry) or _has_file_of(here, entry)
        if is_linked or _names(here, root, store_key):
            return View(path, (found.st_ino, found.st_mtime_ns), not is_linked)
    except OSError:
        return None
    finally:
        os.close(here)
    return None


def _is_manifest_of(found: os.stat_result, entry: str) -> bool:
    """Whether a manifest is the very file that an entry of the store has."""
    try:
        stored = os.lstat(f"{entry}/{MANIFEST}")
    except OSError:
        return False
    return os.path.samestat(found, stored)


def _has_file_of(here: int, entry: str) -> bool:
    """Whether an open directory has, by its manifest, a file that is the very one of an entry of the store.

    So has a view with a manifest of its own: of what stock Triton had left, or from before the entry got its recipe.
    """
    read = read_manifest("", MANIFEST, here)
    if read is None:
        return False
    name = min(read[0].listed)
    try:
        there = os.stat(name, dir_fd=here, follow_symlinks=False)
        return os.path.samestat(there, os.lstat(f"{entry}/{name}"))
    except (OSError, ValueError):
        return False


def _names(here: int, root: str, store_key: str) -> bool:
    """Whether the manifest in an open directory says that it is of a copy of this entry of this root's store."""
    read = read_manifest("", MANIFEST, here)
    return read is not None and _named(read[0], root) == store_key


def _named(manifest: Manifest, root: str) -> str | None:
    """The key in the store of what a manifest says to be a copy of; None where it says so of no entry of this root."""
    if manifest.key is None or manifest.root != root:
        return None
    return manifest.facts.store_key(manifest.key)


def keys_in(directory: str) -> list[str]:
    """The names in a device directory that look like keys; none where it is gone or may not be listed."""
    try:
        with os.scandir(directory) as items:
            return [item.name for item in items if KEY.fullmatch(item.name)]
    except OSError:
        return []


def store_key_in(path: str, root: str) -> str | None:
    """The key in the store of the entry of which a directory says to be a copy; None where it says so of none.

    ``root`` is a real path.
    """
    with suppress(OSError):
        read = read_manifest(path)
        if read is not None:
            return _named(read[0], root)
    return None


def is_removable(foreign: Foreign) -> bool:
    """Whether this process may remove views from a foreign directory; those that it may not stay, whole."""
    return may(foreign.path, os.W_OK | os.X_OK)
