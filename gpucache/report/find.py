"""`find_entries`: the entries of one key, or of a beginning of keys, without a look at the rest of the root."""

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
    is_short = len(key) < _SHARD_LETTERS
    found = scan(root, progress).entries if is_short else _beginning(root, key)
    exact = _with_key(key, found)
    if exact:
        return exact
    return tuple(entry for entry in found if entry.key.startswith(key))


def _with_key(key: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.key == key)


def _whole_key(root: str, key: str) -> tuple[Entry, ...]:
    """Read the entries that share the directories of a key: a kernel, or files that stand for themselves."""
    found = KeyDirectories(root)
    shared = view_key(key)
    for shard in _shard_of(root, key):
        named = _matching(shard, STORE_KEY, lambda name: view_key(name) == shared)
        _read(found, None, shard, named)
    for device, directory in device_directories(root):
        _read(found, device, directory, _existing(f"{directory}/{shared}"))
    return found.entries()


def _beginning(root: str, beginning: str) -> tuple[Entry, ...]:
    """Read the entries whose keys begin so; also a few others, which share a view with one of these."""

    def is_wanted(name: str) -> bool:
        shared = view_key(name)
        return shared.startswith(beginning) or beginning.startswith(shared)

    found = KeyDirectories(root)
    for shard in _shard_of(root, beginning):
        _read(found, None, shard, _matching(shard, STORE_KEY, is_wanted))
    for device, directory in device_directories(root):
        _read(found, device, directory, _matching(directory, KEY, is_wanted))
    return found.entries()


def _shard_of(root: str, key: str) -> list[str]:
    """The part of the store that has the key, where there is one."""
    name = key[:_SHARD_LETTERS]
    return [path for path in shards(root) if os.path.basename(path) == name]


def _read(found: KeyDirectories, device: str | None, directory: str, paths: Iterable[str]) -> None:
    known = found.inodes.disk(directory)
    for path in paths:
        try:
            found.read(path, device, known, Sum(directory))
        except OSError:  # gone, or not for us to look into: `scan` tells which
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
                is_key = is_wanted(item.name) and pattern.fullmatch(item.name)
                if is_key and item.is_dir(follow_symlinks=False):
                    yield item.path
    except OSError:
        return
