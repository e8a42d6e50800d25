"""Make an entry smaller: what Triton needs to launch a kernel stays, what only people read goes.

A group of the metadata and the binary alone is a hit to Triton 3.2 to 3.9 (tests/test_slim.py asks each). What then is
missing is ``kernel.asm["ptx"]`` and its like.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache

from gpucache.disk.reading import quietly
from gpucache.disk.staging import Staging
from gpucache.kernels.group import GROUP, write_group
from gpucache.layout import paths
from gpucache.report.entries import Entry
from gpucache.store.manifest import CONDEMNED, MANIFEST, entry_path, read_manifest
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import ASIDE
from gpucache.store.removal import NOTHING, Freed, InUse, Target, delete, taken
from gpucache.store.stock import describe, stock_group

DROPPED = (".source", ".ttir", ".ttgir", ".llir", ".ptx")
"""How the names of files end that no launch needs."""


def kept(name: str) -> bool:
    """Whether a file of an entry stays."""
    return not name.endswith(DROPPED)


def slimmed_bytes(entry: Entry) -> int:
    """What a kernel's entry would lose without the files that no launch needs; 0 for what is no kernel."""
    if entry.kind != "kernel":
        return 0
    dropped = sum(file.size_bytes for file in entry.files if not kept(file.name))
    return dropped if entry.stored else dropped * len(entry.copies)


def slim(
    root: str, key: str, group: str, places: Sequence[Target], locks: str | None
) -> list[Freed]:
    """Replace a kernel's entry, in all of its places, by one without the `DROPPED` files; what was freed in each.

    Beside any readers, writers and removers. Killed at any instant, the entry is whole, smaller and whole, or gone. The
    time of its last use stays. What was freed is what was deleted without what was written for it.

    Raises:
        InUse: it was used since, its files are not whole, or the disk refused; it is whole, in its places or in some
            of them smaller.
    """
    with taken(key, places, locks) as asides:
        if places[0].path == entry_path(root, key):
            _stored(root, key, places, asides)
        else:
            for place, aside in zip(places, asides, strict=True):
                _alone(place, aside, group)
        written = _written([place.path for place in places], asides)
    return [delete(aside).minus(new) for aside, new in zip(asides, written, strict=True)]


def _stored(root: str, key: str, places: Sequence[Target], asides: Sequence[str]) -> None:
    found = read_manifest(asides[0], CONDEMNED)
    if found is None:
        raise InUse("its manifest cannot be understood")
    manifest, used = found
    entry = entry_path(root, key)
    files = {}
    for name, sha256 in manifest.digests.items():
        if kept(name):
            files[name] = (f"{asides[0]}/{name}", sha256)
    made = publish_entry(root, key, files, manifest.facts, _staging(root), repair=False, used=used)
    smaller = read_manifest(entry) if made else None
    if smaller is None:
        raise InUse("another process has put something in its place")
    for place in places[1:]:
        link_view(root, entry, place.path, smaller[0], repair=False)


@lru_cache(maxsize=8)
def _staging(root: str) -> Staging:
    """One for all entries: each holds a descriptor for life."""
    return Staging(paths.ours(root, "tmp"))


def _alone(place: Target, aside: str, group: str) -> None:
    """An entry of stock Triton's, or a view that has lost its entry."""
    if not place.ours:  # what was condemned is the group
        os.rename(f"{aside}/{CONDEMNED}", f"{aside}/{GROUP}{group}")
    names = stock_group(aside, group, condemned=True, opener=quietly)  # access times tell of uses
    if names is None:
        raise InUse("its group is not whole")
    smaller = tempfile.mkdtemp(prefix=ASIDE, dir=os.path.dirname(place.path))
    try:
        stay = list(filter(kept, names))
        for name in stay:
            os.link(f"{aside}/{name}", f"{smaller}/{name}")
        _keep_manifest(aside, smaller, stay)
        write_group(smaller, place.path, group, stay)
        shutil.copymode(aside, smaller)  # others may read what is stock Triton's
        os.rename(smaller, place.path)
    except BaseException:
        delete(smaller)
        raise


def _keep_manifest(aside: str, smaller: str, names: Iterable[str]) -> None:
    found = read_manifest(aside, CONDEMNED)
    if found is not None:
        manifest, used = found
        digests = {name: manifest.files[name].sha256 for name in names}
        describe(smaller, digests, manifest.facts)
        os.utime(f"{smaller}/{MANIFEST}", (used, used))


def _written(directories: Iterable[str], asides: Iterable[str]) -> list[Freed]:
    """What the smaller directories have that the others had not."""
    seen = {inode for aside in asides for inode, _ in _inodes(aside)}
    written = []
    for directory in directories:
        new = NOTHING
        for inode, size in _inodes(directory):
            new = new.plus(Freed(1, size, 0 if inode in seen else size))
            seen.add(inode)
        written.append(new)
    return written


def _inodes(directory: str) -> list[tuple[tuple[int, int], int]]:
    """Device, inode and size of each file in a directory; none where that is gone."""
    try:
        with os.scandir(directory) as items:
            found = [item.stat(follow_symlinks=False) for item in items]
    except OSError:
        return []
    return [((one.st_dev, one.st_ino), one.st_size) for one in found]
