"""`metadata_in`: reads the metadata of the kernel in one key directory; `group_in`, `manifest_in`: what leads to it."""

from __future__ import annotations

import os

from gpucache.kernels.group import grouped_names
from gpucache.kernels.metadata import Metadata, metadata_at
from gpucache.layout.keys import view_key
from gpucache.store.manifest import Manifest, read_manifest


def metadata_in(directory: str) -> Metadata | None:
    """Read the metadata of the kernel in a key directory; None where there is none that can be read."""
    group = group_in(directory)
    return metadata_at(f"{directory}/{group}") if group else None


def group_in(directory: str) -> str | None:
    """Name the metadata file of a key directory, by its manifest or Triton's group file; None without either."""
    found = manifest_in(directory)
    if found is not None:
        return found.facts.group
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    return min(grouped_names(names), default=None)


def manifest_in(directory: str) -> Manifest | None:
    """Read the manifest of an entry or a view; None where there is none that can be read."""
    try:
        found = read_manifest(directory)
    except OSError:
        return None  # a disk that does not answer
    return None if found is None else found[0]


def of_another_key(directory: str, manifest: Manifest, stored: bool) -> str | None:
    """Tell how a manifest shows that its directory was given the name of another key; None where it does not.

    ``stored``: the directory is the store's. Where an older gpucache has not written the key, the name of a single
    file's entry still shows the name of the file.
    """
    name = os.path.basename(directory)
    key = manifest.key or view_key(name)
    wanted = manifest.facts.store_key(key) if stored else key
    if name == wanted:
        return None
    return f"it is of {manifest.facts.kernel} with the key {wanted}"
