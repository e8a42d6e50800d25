"""`find_entries`: finds the entries that a person names by a key, or by its beginning, for `explain` and `ls KEY`.

A hit of a kernel does not come here: its path is `gpucache.store.lookup`. The rest of the root is not looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator

from gpucache.layout.keys import KEY, STORE_KEY, device_directories, shards, view_key
from gpucache.report.cache_report import Progress, scan
from gpucache.report.entries import Entry
from gpucache.report.inodes import Sum
from gpucache.report.key_directories import KeyDirectories
from gpucache.store.foreign import Foreign, foreign_directories, keys_in

_SHARD_LETTERS = 2
"""How many letters of a key name its shard of the store; with fewer there is no shard to look into."""


def find_entries(root: str, key: str, progress: Progress | None = None) -> tuple[Entry, ...]:
    """Find the entry of a key; where there is none, all entries whose keys begin so.

    They are as in `scan`, in the same order; a whole key costs one directory for the store and for each device, a
    beginning of two or more letters one listing of each. One letter, or none, costs a whole scan, which alone calls
    ``progress``.

    Hard links between entries of different keys, which nothing here makes, are not noticed: where `scan` counts such
    a file for one of the entries, here each has it. So are directories that were renamed to another key.
    """
    root = os.path.realpath(root)
    if STORE_KEY.fullmatch(key):
        exact = _with_key(key, _whole_key(root, key))
        if exact:
            return exact
    found = _beginning(root, key, progress)
    exact = _with_key(key, found)
    if exact:
        return exact
    return tuple(entry for entry in found if entry.key.startswith(key))


def _with_key(key: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.key == key)


def _whole_key(root: str, key: str) -> tuple[Entry, ...]:
    """Read the entries that share the directories of a key: a kernel, or files that stand for themselves."""
    shared = view_key(key)

    def is_wanted(name: str) -> bool:
        return view_key(name) == shared

    found = KeyDirectories(root)
    for shard in _shard_of(root, key):
        paths = _matching(shard, STORE_KEY, is_wanted)
        _read(found, None, shard, paths)
    for device, directory in device_directories(root):
        paths = _existing(f"{directory}/{shared}")
        _read(found, device, directory, paths)
    for foreign in foreign_directories(root):
        _read_foreign(found, foreign, [shared])
    return found.entries()


def _beginning(root: str, beginning: str, progress: Progress | None) -> tuple[Entry, ...]:
    """Read the entries whose keys begin so, and some others: those that share a view; with a short beginning, all."""
    if len(beginning) < _SHARD_LETTERS:
        return scan(root, progress, may_be_missing=True).entries

    def is_wanted(name: str) -> bool:
        shared = view_key(name)
        return shared.startswith(beginning) or beginning.startswith(shared)

    found = KeyDirectories(root)
    for shard in _shard_of(root, beginning):
        paths = _matching(shard, STORE_KEY, is_wanted)
        _read(found, None, shard, paths)
    for device, directory in device_directories(root):
        paths = _matching(directory, KEY, is_wanted)
        _read(found, device, directory, paths)
    for foreign in foreign_directories(root):
        _read_foreign(found, foreign, filter(is_wanted, keys_in(foreign.path)))
    return found.entries()


def _shard_of(root: str, key: str) -> list[str]:
    """The shard of the store that a key belongs in, as a list of one path; empty where there is no such shard."""
    name = key[:_SHARD_LETTERS]
    return [path for path in shards(root) if os.path.basename(path) == name]


def _read(found: KeyDirectories, device: str | None, directory: str, paths: Iterable[str]) -> None:
    """Read key directories of a shard (``device`` is None) or of a device directory; pass over what cannot be read."""
    known = found.inodes.disk(directory)
    total = Sum(directory)
    for path in paths:
        try:
            found.read(path, device, known, total)
        except OSError:  # gone, or not for us to look into: `scan` tells which
            continue


def _read_foreign(found: KeyDirectories, foreign: Foreign, keys: Iterable[str]) -> None:
    """Read the views that a device directory outside the root has under these keys."""
    known = found.inodes.disk(foreign.path)
    total = Sum(foreign.path)
    for key in keys:
        try:
            found.read_foreign(foreign, key, known, total)
        except OSError:  # as above
            continue


def _existing(path: str) -> Iterator[str]:
    """Yield the path, if it is a directory and no link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        yield path


def _matching(
    directory: str, pattern: re.Pattern[str], is_wanted: Callable[[str], bool]
) -> Iterator[str]:
    """Yield the paths of the key directories in a directory whose names are wanted."""
    try:
        with os.scandir(directory) as items:
            for item in items:
                name = item.name
                is_key = is_wanted(name) and pattern.fullmatch(name)
                if is_key and item.is_dir(follow_symlinks=False):
                    yield item.path
    except OSError:
        return
