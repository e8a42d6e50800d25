"""What one key directory says of itself: our manifest, the group, the kernel's metadata."""

from __future__ import annotations

import os

from gpucache.disk.reading import read
from gpucache.kernels.group import GROUP
from gpucache.kernels.metadata import Metadata
from gpucache.store.manifest import Manifest, read_manifest


def metadata_in(directory: str) -> Metadata | None:
    """The metadata of the kernel whose entry or view this is; None without one that can be read."""
    group = group_in(directory)
    try:
        return Metadata.parse(read(f"{directory}/{group}")) if group else None
    except (OSError, ValueError):
        return None


def group_in(directory: str) -> str | None:
    """The name of a directory's metadata file, by our manifest or Triton's group file; None where there is neither."""
    found = manifest_in(directory)
    if found is not None:
        return found.facts.group
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith(GROUP))
    except OSError:
        return None
    return names[0].removeprefix(GROUP) if names else None


def manifest_in(directory: str) -> Manifest | None:
    """Our manifest of a directory; None without one that can be read."""
    try:
        found = read_manifest(directory)
    except OSError:
        return None  # a disk that does not answer
    return None if found is None else found[0]
