"""`slim`: makes an entry smaller. What Triton needs to launch a kernel stays, what only people read goes.

A group of the metadata and the binary alone is a hit to Triton 3.2 to 3.9 (tests/test_slim.py asks each). What then is
missing is ``kernel.asm["ptx"]`` and its like.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from gpucache.disk.reading import quietly
from gpucache.disk.staging import Staging
from gpucache.disk.within import Straight
from gpucache.kernels.group import GROUP, write_group
from gpucache.layout import paths
from gpucache.report.entries import Entry
from gpucache.store.manifest import CONDEMNED, MANIFEST, entry_path, read_manifest
from gpucache.store.placing import link_or_copy, put, set_use
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import ASIDE
from gpucache.store.removal import NOTHING, Freed, InUse, Target, delete, taken
from gpucache.store.stock import describe, stock_group

DROPPED = (".source", ".ttir", ".ttgir", ".llir", ".ptx")
"""How the names of files end that no launch needs."""


def kept(name: str) -> bool:
    """Whether a file of an entry stays when the entry is made smaller."""
    return not name.endswith(DROPPED)


def slimmed_bytes(entry: Entry) -> int:
    """How many bytes a kernel's entry would lose without the files that no launch needs; 0 for what is no kernel."""
    if entry.kind != "kernel":
        return 0
    dropped = 0
    for file in entry.files:
        if not kept(file.name):
            dropped += file.size_bytes
    if entry.stored:
        return dropped
    return dropped * len(entry.copies)


def slim(
    root: str,
    key: str,
    group: str,
    targets: Sequence[Target],
    locks: str | None,
    disk: Straight,
) -> list[Freed]:
    """Replace a kernel's entry, in all of its directories, by one without the `DROPPED` files; what each freed.

    Beside any readers, writers and removers. Killed at any instant, the entry is whole, smaller and whole, or gone. The
    time of its last use stays. What was freed is what was deleted without what was written for it.

    Raises:
        InUse: it was used since, its files are not whole, or the disk refused; it is whole, in its directories or in
            some of them smaller.
    """
    with taken(key, targets, locks, disk) as asides:
        in_store = entry_path(root, key)
        if targets[0].path == in_store:
            disk.listdir(
                paths.ours(root, "tmp")
            )  # no link may lead elsewhere what is published from there
            _slim_stored(root, key, targets, asides)
        else:
            for target, aside in zip(targets, asides, strict=True):
                _slim_alone(target, aside, group, disk)
        directories = [target.path for target in targets]
        written = _written(directories, asides)
    freed = []
    for aside, new in zip(asides, written, strict=True):
        freed.append(delete(aside, disk).minus(new))
    return freed


def _slim_stored(root: str, key: str, targets: Sequence[Target], asides: Sequence[str]) -> None:
    """Publish a smaller entry from the files that are aside, and link its views anew."""
    aside = asides[0]  # the store's directory, which comes before its views
    found = read_manifest(aside, CONDEMNED)
    if found is None:
        raise InUse("its manifest cannot be understood")
    manifest, used = found
    files = {}
    for name, sha256 in manifest.digests.items():
        if kept(name):
            files[name] = (f"{aside}/{name}", sha256)
    staging = _staging(root)
    made = publish_entry(root, key, files, manifest.facts, staging, repair=False, used=used)
    entry = entry_path(root, key)
    published = read_manifest(entry) if made else None
    if published is None:
        raise InUse("another process has put something in its place")
    smaller, _ = published
    for view in targets[1:]:
        link_view(root, entry, view.path, smaller, repair=False)


@lru_cache(maxsize=8)
def _staging(root: str) -> Staging:
    """Make one staging area for all entries of a root: each area holds a descriptor for life."""
    return Staging(paths.ours(root, "tmp"))


def _slim_alone(target: Target, aside: str, group: str, disk: Straight) -> None:
    """Put a smaller directory in the place of one of stock Triton's, or of a view that has lost its entry."""
    if not target.ours:  # what was condemned is the group
        os.rename(f"{aside}/{CONDEMNED}", f"{aside}/{GROUP}{group}")
    names = stock_group(aside, group, condemned=True, opener=quietly)  # access times tell of uses
    if names is None:
        raise InUse("its group is not whole")
    parent = os.path.dirname(target.path)
    smaller = tempfile.mkdtemp(prefix=ASIDE, dir=parent)
    try:
        stay = [name for name in names if kept(name)]
        for name in stay:
            link_or_copy(f"{aside}/{name}", f"{smaller}/{name}")
        _keep_manifest(aside, smaller, stay)
        write_group(smaller, target.path, group, stay)
        shutil.copymode(aside, smaller)  # others may read what is stock Triton's
        if not put(smaller, target.path, locked=True):
            raise InUse("another process has put something in its place")
    except BaseException:
        delete(smaller, disk)
        raise


def _keep_manifest(aside: str, smaller: str, names: Iterable[str]) -> None:
    """Give a smaller view a manifest of these files, if it had one, with the time of its last use."""
    found = read_manifest(aside, CONDEMNED)
    if found is None:
        return
    manifest, used = found
    digests = {name: manifest.files[name].sha256 for name in names}
    describe(smaller, digests, manifest.facts, manifest.origin, manifest.key)
    set_use(f"{smaller}/{MANIFEST}", round(used * 1e9))


def _written(directories: Iterable[str], asides: Iterable[str]) -> list[Freed]:
    """Count what was written for each of the smaller directories, beyond hard links to what was there."""
    seen: set[tuple[int, int]] = set()
    for aside in asides:
        seen.update(file.inode for file in _files(aside))
    written = []
    for directory in directories:
        new = NOTHING
        for file in _files(directory):
            physical_bytes = 0 if file.inode in seen else file.size_bytes
            one = Freed(1, file.size_bytes, physical_bytes)
            new = new.plus(one)
            seen.add(file.inode)
        written.append(new)
    return written


class _File(NamedTuple):
    inode: tuple[int, int]
    """Device and inode."""
    size_bytes: int


def _files(directory: str) -> list[_File]:
    """List the files in a directory; none where the directory is gone."""
    files = []
    try:
        with os.scandir(directory) as items:
            for item in items:
                found = item.stat(follow_symlinks=False)
                inode = (found.st_dev, found.st_ino)
                files.append(_File(inode, found.st_size))
    except OSError:
        return []
    return files
