"""`slim`: makes an entry smaller. What Triton needs to launch a kernel stays (`kernels.stages`), the rest goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gpucache.disk.reading import quietly
from gpucache.disk.sharing import modes_like, new_aside
from gpucache.disk.within import Straight
from gpucache.kernels.group import GROUP, write_group
from gpucache.kernels.stages import kept
from gpucache.report.entries import Entry
from gpucache.store.deletion import NOTHING, Freed, delete
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    RECIPE,
    Manifest,
    Published,
    entry_path,
    read_manifest,
    write_manifest,
)
from gpucache.store.placing import hand_over, link_or_copy, put, set_use
from gpucache.store.recipe_file import read_recipe
from gpucache.store.removal import InUse, Target, taken
from gpucache.store.stock import stock_group


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
    """Replace a kernel's entry, in all of its directories, by one with what a launch needs; what each freed.

    Beside any readers, writers and removers. Killed at any instant, the entry is whole, smaller and whole, or gone. The
    time of its last use stays. What was freed is what was deleted without what was written for it.

    Raises:
        InUse: it was used since, its files are not whole, or the disk refused; it is whole, in its directories or in
            some of them smaller.
    """
    in_store = entry_path(root, key)
    with taken(key, targets, locks, disk) as asides:
        for target, aside in zip(targets, asides, strict=True):
            if not target.ours:  # what was condemned is the group
                disk.rename(f"{aside}/{CONDEMNED}", f"{aside}/{GROUP}{group}")
            # The store's directory comes first: whose manifest was the store's shares the new one too.
            is_view = targets[0].path == in_store != target.path
            shares = is_view and target.mark[0] == targets[0].mark[0]
            with disk.held(aside) as old:
                smaller = _smaller(old, group, target.ours, target.path == in_store)
                in_group = None if target.path == in_store else smaller.group
                _replace(target, old, smaller, in_group, in_store if shares else None, disk)
        directories = [target.path for target in targets]
        written = _written(directories, asides)
    freed = []
    for aside, new in zip(asides, written, strict=True):
        freed.append(delete(aside, disk).minus(new))
    return freed


class _Smaller(NamedTuple):
    """What a smaller directory is to have."""

    names: list[str]
    group: str
    manifest: Manifest | None
    """Of what is gpucache's, as it is."""
    used: float = 0.0
    """When that was used last, in seconds since the epoch."""
    has_recipe: bool = False


def _smaller(old: str, group: str, ours: bool, stored: bool) -> _Smaller:
    """Tell what stays of the directory that is now at ``old``; ``group`` is the group's name in what is stock Triton's.

    ``stored``: it is the store's, which alone has a recipe; one that is damaged goes.

    Raises:
        InUse: what is there is not whole.
    """
    if ours:
        found = read_manifest(old, CONDEMNED)
        if found is None:
            raise InUse("its manifest cannot be understood")
        manifest, used = found
        its_group = manifest.facts.group or group
        has_recipe = stored and read_recipe(old, manifest) is not None
        if stored and not has_recipe:
            manifest = manifest._replace(recipe=None)
        return _Smaller(list(filter(kept, manifest.files)), its_group, manifest, used, has_recipe)
    files = stock_group(old, group, condemned=True, opener=quietly)  # access times tell of uses
    if files is None:
        raise InUse("its group is not whole")
    return _Smaller(list(filter(kept, files)), group, None)


def _replace(
    target: Target,
    old: str,
    smaller: _Smaller,
    group: str | None,
    stored: str | None,
    disk: Straight,
) -> None:
    """Put a smaller directory in the place of one that was set aside, and is now at ``old``.

    ``group`` is the name of the group that the directory is to have; ``stored`` is the store's directory, if the
    manifest is to be that one's.

    Raises:
        InUse: another process has put something in its place.
        OSError: the disk refused.
    """
    parent, key = os.path.split(target.path)
    with disk.held(parent) as beside:
        made = new_aside(beside, modes_like(old))  # others may read what is stock Triton's
        aside = f"{parent}/{os.path.basename(made)}"
        try:
            with disk.held(aside) as new:
                made_here = []
                for name in smaller.names:
                    if not link_or_copy(f"{old}/{name}", f"{new}/{name}"):
                        made_here.append(name)
                if smaller.has_recipe and not link_or_copy(f"{old}/{RECIPE}", f"{new}/{RECIPE}"):
                    made_here.append(RECIPE)
                made_here += _give_manifest(new, smaller, stored, disk)
                write_group(new, target.path, group, smaller.names)
                if group is not None:
                    made_here.append(f"{GROUP}{group}")
                with disk.directory(aside) as here:
                    hand_over(here, made_here, os.stat(old))
            if not put(made, f"{beside}/{key}", locked=True):
                raise InUse("another process has put something in its place")
        except BaseException:
            delete(aside, disk)
            raise


def _give_manifest(new: str, smaller: _Smaller, stored: str | None, disk: Straight) -> list[str]:
    """Give a smaller directory a manifest of its files, if it had one, with the time of the last use.

    Returns the manifest's name if it was written, and nothing if it is the store's.
    """
    if smaller.manifest is None:
        return []
    if stored is not None:
        with disk.held(stored) as entry:
            if link_or_copy(f"{entry}/{MANIFEST}", f"{new}/{MANIFEST}"):
                return []
        os.unlink(f"{new}/{MANIFEST}")
    files = {}
    for name in smaller.names:
        seen = os.stat(f"{new}/{name}")
        sha256 = smaller.manifest.files[name].sha256
        files[name] = Published(seen.st_size, seen.st_mtime_ns, sha256)
    write_manifest(new, smaller.manifest._replace(listed=files))
    set_use(f"{new}/{MANIFEST}", round(smaller.used * 1e9))
    return [MANIFEST]


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
