"""What one key directory says of itself: the manifest, the group, the metadata of the kernel."""

from __future__ import annotations

import os

from gpucache.disk.reading import read
from gpucache.kernels.group import GROUP
from gpucache.kernels.metadata import Metadata
from gpucache.store.manifest import Manifest, read_manifest


def metadata_in(directory: str) -> Metadata | None:
    """The metadata of the kernel whose entry or view this is; None without one that can be read."""
    group = group_in(directory)
    if not group:
        return None
    try:
        return Metadata.parse(read(f"{directory}/{group}"))
    except (OSError, ValueError):
        return None


def group_in(directory: str) -> str | None:
    """The name of a directory's metadata file, by its manifest or Triton's group file; None where there is neither."""
    found = manifest_in(directory)
    if found is not None:
        return found.facts.group
    try:
        groups = [name for name in os.listdir(directory) if name.startswith(GROUP)]
    except OSError:
        return None
    return min(groups).removeprefix(GROUP) if groups else None


def manifest_in(directory: str) -> Manifest | None:
    """The manifest of an entry or a view; None without one that can be read."""
    try:
        found = read_manifest(directory)
    except OSError:
        return None  # a disk that does not answer
    return None if found is None else found[0]
