"""`where_looked`: where a process looks for a key, by its environment, and where else under the root the entry is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpucache import environment
from gpucache.directories.python_path import manager
from gpucache.directories.record import recorded
from gpucache.disk.fresh import fresh_part
from gpucache.disk.reading import listed
from gpucache.layout import paths
from gpucache.layout.keys import device_directories, view_key
from gpucache.store.manifest import entry_path
from gpucache.triton.own_device import default_directory


class Apart(NamedTuple):
    """A setting by which a process does not ask the store."""

    variable: str
    fact: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Where a process looks for a key, and where it does not."""

    key: str
    """The key in the form that device directories have."""
    root: str
    environ: Mapping[str, str]
    directory: str
    """The device directory of the process."""
    apart: tuple[Apart, ...]
    """Why Triton's own cache manager acts, which knows no store; empty where the store is asked."""
    places: tuple[str, ...]
    """The key directories that the process looks at, whether they are there or not."""
    others: tuple[str, ...]
    """The key directories under the root that the process does not look at, and that are there."""

    def is_stored(self, path: str) -> bool:
        """Whether a path is in the root's store."""
        return _is_stored(path, self.root)


def where_looked(
    entry: str, root: str, environ: Mapping[str, str], directory: str | None
) -> Looked:
    """Where a process with this environment looks for the entry of a key, or for the one at a path.

    ``directory`` is its device directory; by default what the environment says, else where the path lies, else Triton's
    own default.
    """
    path = os.path.abspath(entry)
    key = view_key(os.path.basename(path))
    named = path if "/" in entry else None
    if not directory:
        directory = _directory(named, root, environ)
    apart = tuple(_reasons_apart(root, environ, directory))
    copies = _copies_there(root, key, named)
    places = [f"{directory}/{key}"]
    if not apart:
        stored = [copy for copy in copies if _is_stored(copy, root)]
        places += stored or [entry_path(root, key)]
    others = [copy for copy in copies if copy not in places]
    return Looked(
        key=key,
        root=root,
        environ=environ,
        directory=directory,
        apart=apart,
        places=tuple(places),
        others=tuple(others),
    )


def _is_stored(path: str, root: str) -> bool:
    store = paths.ours(root, "store")
    return path.startswith(f"{store}/")


def _directory(named: str | None, root: str, environ: Mapping[str, str]) -> str:
    """The device directory of the process: what the environment says, else where ``named`` lies, else Triton's own."""
    directory = _directory_set(root, environ)
    if directory:
        return directory
    if named is not None and not _is_stored(named, root):
        return os.path.dirname(named)
    return default_directory(root, None, environ)


def _directory_set(root: str, environ: Mapping[str, str]) -> str | None:
    """The device directory that the environment names: by its path, or by the pinned device."""
    directory = environment.TRITON_DIRECTORY.text(environ)
    if directory:
        return os.path.abspath(directory)
    pinned = environment.PINNED_DEVICE.text(environ)
    record = recorded(root) if pinned else None
    if pinned is None or record is None:
        return None
    name = record.names.get(pinned)
    return None if name is None else paths.device_directory(root, name)


def is_outside_of_run(environ: Mapping[str, str]) -> bool:
    """Whether nothing of an environment tells a process where to cache, as in a shell without `gpucache run`."""
    named = environment.TRITON_DIRECTORY.text(environ) or environment.PINNED_DEVICE.text(environ)
    return not named and manager(environ) is None


def _copies_there(root: str, key: str, named: str | None) -> list[str]:
    """The key's directories below the root that are there, each once, and the one that the caller has named."""
    candidates = _candidates(root, key)
    if named is not None:
        candidates.append(named)
    return [path for path in dict.fromkeys(candidates) if os.path.isdir(path)]


def _candidates(root: str, key: str) -> list[str]:
    """Where the key may lie below the root: the store, where a library has a longer name, and the devices'."""
    found = []
    shard = os.path.dirname(entry_path(root, key))
    for path in listed(shard):
        name = os.path.basename(path)
        if view_key(name) == key:
            found.append(path)
    for _, path in device_directories(root):
        found.append(f"{path}/{key}")
    return found


def _reasons_apart(root: str, environ: Mapping[str, str], directory: str) -> Iterator[Apart]:
    """Name the settings by which Triton's own cache manager acts, which knows no store."""
    chosen = manager(environ)
    if chosen != environment.OUR_MANAGER:
        fact = f"the cache manager is {chosen or 'the one of Triton'}"
        wanted = f"{environment.MANAGER}={environment.OUR_MANAGER}"
        fix = f"set {wanted}, as gpucache run does; and ask under it"
        yield Apart(environment.MANAGER.name, fact, fix)
    share = environment.SHARE.read_or_default(environ)
    off = []
    if environment.DISABLE.read_or_default(environ):
        off.append(environment.DISABLE.name)
    if share is False:
        off.append(environment.SHARE.name)
    if environment.USE_IR_LOC.read(environ):
        off.append(environment.USE_IR_LOC.name)
    for name in off:
        yield Apart(name, f"{name}={environ[name]}", f"unset {name}")
    part = None if share else fresh_part(directory, root)
    if part is not None:
        fact = f"{directory} is fresh on purpose, by its part {part}"
        fix = f"set {environment.SHARE}=1, or another {environment.TRITON_DIRECTORY}"
        yield Apart(environment.TRITON_DIRECTORY.name, fact, fix)
