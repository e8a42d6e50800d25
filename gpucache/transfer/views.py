"""Views of kernels in this host's device directories, for a Triton without the plug-in, which reads nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucache.directories.record import of_this_host
from gpucache.layout.paths import device_directory
from gpucache.store.manifest import entry_path, read_manifest
from gpucache.store.publish import link_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpucache.archive.statement import ArchivedEntry


def device_directories(root: str) -> list[str]:
    """The directories of the devices that this host has on record.

    Raises:
        RecordError: the root has no record of this host, or none that can be used.
    """
    record = of_this_host(root)
    return [device_directory(root, record.names[device.uuid]) for device in record.present]


def make_views(root: str, entries: Iterable[ArchivedEntry], directories: Sequence[str]) -> int:
    """Make what is missing of a view of each kernel in device directories of the root; how many are there then.

    The plug-in makes its views itself, as it needs them. Beside any readers, writers and removers: what is damaged, or
    just being made, is left to others.

    Raises:
        OSError: the disk refused; what was made before stays, and is whole.
    """
    kernels = [entry.key for entry in entries if entry.kind == "kernel"]
    return make_views_of(root, kernels, directories)


def make_views_of(root: str, kernels: Iterable[str], directories: Sequence[str]) -> int:
    """As `make_views`, of kernels by their keys."""
    return sum(_views_of(root, key, directories) for key in kernels)


def _views_of(root: str, key: str, directories: Sequence[str]) -> int:
    source = entry_path(root, key)
    found = read_manifest(source)
    if found is None:
        return 0  # it was removed again
    manifest, _ = found
    views = [f"{directory}/{key}" for directory in directories]
    return sum(link_view(root, source, view, manifest, repair=False) for view in views)
