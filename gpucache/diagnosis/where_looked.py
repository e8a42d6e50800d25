"""`where_looked`: where a process looks for a key, by its environment, and where else under the root the entry is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpucache import environment
from gpucache.directories.record import recorded
from gpucache.disk.reading import listed
from gpucache.layout import paths
from gpucache.layout.keys import device_directories, view_key
from gpucache.store.manifest import entry_path
from gpucache.triton.location import is_fresh
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
    """As device directories have it."""
    root: str
    environ: Mapping[str, str]
    directory: str
    """The device directory of the process."""
    apart: tuple[Apart, ...]
    """Why Triton's own cache manager acts, which knows no store; empty where the store is asked."""
    places: tuple[str, ...]
    """The key directories that the process looks at, whether they are there or not."""
    others: tuple[str, ...]
    """Those that it does not look at, and that are there."""

    def is_stored(self, path: str) -> bool:
        """Whether a path is one of the store's."""
        return path.startswith(paths.ours(self.root, "store") + "/")


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
    store = paths.ours(root, "store") + "/"
    directory = directory or _directory_set(root, environ)
    if directory is None and named is not None and not named.startswith(store):
        directory = os.path.dirname(named)
    directory = directory or default_directory(root, None, environ)
    apart = tuple(_reasons_apart(root, environ, directory))
    copies = [*_copies(root, key)]
    if named is not None:
        copies.append(named)
    copies = [copy for copy in dict.fromkeys(copies) if os.path.isdir(copy)]
    places = [f"{directory}/{key}"]
    if not apart:
        stored = [copy for copy in copies if copy.startswith(store)]
        places += stored or [entry_path(root, key)]
    return Looked(
        key=key,
        root=root,
        environ=environ,
        directory=directory,
        apart=apart,
        places=tuple(places),
        others=tuple(copy for copy in copies if copy not in places),
    )


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


def _copies(root: str, key: str) -> Iterator[str]:
    """List where the key may lie in the root: in the store, where libraries have longer names, and for each device."""
    shard = os.path.dirname(entry_path(root, key))
    for path in listed(shard):
        if view_key(os.path.basename(path)) == key:
            yield path
    for _, path in device_directories(root):
        yield f"{path}/{key}"


def _reasons_apart(root: str, environ: Mapping[str, str], directory: str) -> Iterator[Apart]:
    """Name the settings by which Triton's own cache manager acts, which knows no store."""
    manager = environment.MANAGER.text(environ)
    if manager != environment.OUR_MANAGER:
        fact = f"the cache manager is {manager or 'the one of Triton'}"
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
    if not share and is_fresh(directory, root):
        fact = f"{directory} is a fresh cache in the temporary directory"
        fix = f"set {environment.SHARE}=1, or another {environment.TRITON_DIRECTORY}"
        yield Apart(environment.TRITON_DIRECTORY.name, fact, fix)
