"""Find out of which key an entry or view is whose manifest does not say so: an older gpucache has written that.

Nodes with either version may share a root: the older one passes over the key in a manifest, and what it writes without
a key is looked into once by the newer one, which then writes the key down.
"""

from __future__ import annotations

import os
import shutil

from gpucache.disk.door import METADATA_BYTES, read_limited
from gpucache.disk.sharing import modes_like, new_aside
from gpucache.kernels.metadata import hash_in
from gpucache.layout.keys import is_key_of
from gpucache.store.key_lock import holding
from gpucache.store.manifest import MANIFEST, Manifest, intact, read_manifest, write_manifest
from gpucache.store.placing import link_or_copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_identified: dict[str, Manifest] = {}
"""Manifests without a key that were found to be that of their directories, where this process cannot write so."""


def is_identified(directory: str, manifest: Manifest) -> bool:
    """Whether this process has found a manifest without a key to be that of its directory."""
    return _identified.get(directory) == manifest


def identify(entry: str, view: str, key: str, lock: Callable[[], str]) -> bool:
    """Give an entry of the store and its view, where their manifests do not say the key, manifests that do.

    Returns whether there was one, which can be used now.

    Only where their contents are those of ``key``, one of Triton's: a kernel's metadata has a hash that is the key. Of
    a file that stands for itself the name of the entry proves its name and tag; nothing proves its key, which is
    believed. ``lock`` gives the path of the key's lock. Where another process holds it, or nothing can be written,
    this process alone remembers what it has found. Beside any readers and removers; what cannot be read stays as it is.
    """
    unknown = []
    for directory in (entry, view):
        manifest = _without_key(directory)
        if manifest is None or is_identified(directory, manifest):
            continue
        if _is_of(directory, key, manifest, entry):
            unknown.append((directory, manifest))
    if not unknown:
        return False
    for directory, manifest in unknown:
        _identified[directory] = manifest
    try:
        with holding(lock(), "its key") as held:
            if held:
                for directory, manifest in unknown:
                    _write_key(directory, manifest._replace(key=key), entry)
    except OSError:
        pass  # read-only: this process remembers
    return True


def _without_key(directory: str) -> Manifest | None:
    """The manifest in a directory, if it does not say its key; None also where it cannot be read."""
    try:
        found = read_manifest(directory)
    except OSError:
        return None
    if found is None or found[0].key is not None:
        return None
    return found[0]


def _is_of(directory: str, key: str, manifest: Manifest, entry: str) -> bool:
    """Whether what lies in a directory is whole, and of this key as far as that can be told."""
    facts = manifest.facts
    if facts.store_key(key) != os.path.basename(entry):
        return False
    try:
        if not intact(directory, manifest):
            return False
        if facts.group is None:
            return True
        metadata = read_limited(f"{directory}/{facts.group}", METADATA_BYTES)
        return is_key_of(key, hash_in(metadata) or "")
    except (OSError, ValueError):
        return False


def _write_key(directory: str, manifest: Manifest, entry: str) -> None:
    """Put a manifest in the place of the one without a key; the store's own where it says the same: views share it.

    Raises:
        OSError: the disk refused; the old manifest is there.
    """
    parent = os.path.dirname(directory)
    modes = modes_like(directory)
    aside = new_aside(parent, modes)
    try:
        stored = read_manifest(entry)
        if directory != entry and stored is not None and stored[0] == manifest:
            link_or_copy(f"{entry}/{MANIFEST}", f"{aside}/{MANIFEST}", modes)
        else:
            write_manifest(aside, manifest)
        # By name: where a removal has condemned the old one meanwhile, it sees the new one, and gives way.
        os.rename(f"{aside}/{MANIFEST}", f"{directory}/{MANIFEST}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
