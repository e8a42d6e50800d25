"""Put a finished compile into the store, whole, and hard-link it into device directories: one copy for each host.

An *entry* is a directory of files, as Triton made them, with `__entry__.json` beside them: size, modification time and
SHA-256 of each file. (Not ``entry.json``: a kernel named ``entry`` has a file of that name.) The *view* of an entry in
a device directory has the same inodes, the same `__entry__.json`, and a `__grp__*.json` of its own, which names the
view's paths, for Triton's own manager. Reading takes no lock. Directories appear and go whole (`store.placing`); the
first complete writer wins, and nothing is rewritten in place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import OPEN_ABOVE, make_below_root, make_directory, remove_tree
from gpucache.disk.sharing import Modes, modes_for, new_aside, set_directory_mode
from gpucache.disk.staging import Staging
from gpucache.kernels.group import GROUP, write_group
from gpucache.layout import paths
from gpucache.layout.keys import view_key
from gpucache.layout.paths import host_name
from gpucache.store import placing
from gpucache.store.lookup import sound
from gpucache.store.manifest import (
    MANIFEST,
    RECIPE,
    Facts,
    Manifest,
    Published,
    entry_path,
    write_manifest,
)
from gpucache.store.quarantine import quarantine, remove_in_place
from gpucache.store.recipe_file import write_recipe
from gpucache.store.stock import BUSY_S


def publish_entry(
    root: str,
    key: str,
    files: Mapping[str, tuple[str, str]],
    facts: Facts,
    staging: Staging,
    repair: bool,
    used: float | None = None,
    recipe: bytes | None = None,
) -> bool:
    """Put files (name to path and SHA-256) into the store as one entry, unless the store has it whole.

    ``repair`` allows to move a damaged entry aside, and needs the key's lock. ``used`` is when the entry was used last,
    in seconds since the epoch, if that is not now. ``recipe`` is what the kernel can be compiled again by, if that is
    known; an entry that is there already keeps its own, or none. Returns whether the store has the whole entry now.

    Raises:
        OSError: the disk refused; the store is as it was.
    """
    target = entry_path(root, key)
    make_below_root(os.path.dirname(target))
    modes = modes_for(target)
    aside = staging.directory()
    try:
        set_directory_mode(aside, modes)
        placing.settle([path for path, _ in files.values()], modes, paths.ours(root, "tmp"))
        placed = {}
        for name, (path, sha256) in files.items():
            placed[name], _ = _placed(path, f"{aside}/{name}", sha256, modes)
        digest = None
        if recipe is not None:
            digest = write_recipe(aside, recipe)
        manifest = Manifest(facts, placed, host_name(), view_key(key), recipe=digest)
        write_manifest(aside, manifest)
        # Stamped before it is in its place: once it is there, a reader may stamp it.
        if used is not None:
            placing.set_use(f"{aside}/{MANIFEST}", round(used * 1e9))
        return publish_directory(root, key, aside, manifest, repair, [MANIFEST, RECIPE])
    finally:
        remove_tree(aside)


def publish_directory(
    root: str, key: str, made: str, manifest: Manifest, repair: bool, names: Iterable[str]
) -> bool:
    """Put a finished directory itself into the store as the entry of a key, unless the store has the entry whole.

    ``made`` lies below the root's ``tmp``, and has the files of ``manifest`` and the manifest, which nobody else has
    seen yet; it is gone afterwards, or half emptied, or, where this returns False, still whole. ``names`` are those
    of its files that this process has written, for the owner of the store where root works for him. ``repair`` is as
    for `publish_entry`. Returns whether the store has the whole entry now.

    Raises:
        OSError: the disk refused; the store is as it was.
    """
    target = entry_path(root, key)
    make_below_root(os.path.dirname(target))
    modes = modes_for(target)
    set_directory_mode(made, modes)
    placing.settle([f"{made}/{name}" for name in names], modes, made)
    _hand_over(made, names, os.path.dirname(target))
    return _put_in_place(root, made, target, manifest, repair)


def _put_in_place(root: str, made: str, target: str, manifest: Manifest, repair: bool) -> bool:
    """Bring a finished directory to ``target``, unless a whole one is there; return whether one is there now.

    ``manifest`` is that of ``made``. ``repair`` allows to move what is damaged aside, and needs the
    key's lock.
    """
    if placing.put(made, target, repair) or _is_whole(target, manifest):
        return True
    if not repair or placing.is_being_made(target, repair):
        return False
    # Asked anew: what another node was making before it was looked at may have been finished until now.
    if _is_whole(target, manifest):
        return True
    if placing.is_half_made(target):
        remove_in_place(target)
    else:
        quarantine(root, target)
    # Once more, and no oftener: another writer may have been faster than this one as well.
    return placing.put(made, target, repair) or _is_whole(target, manifest)


def _is_whole(target: str, manifest: Manifest) -> bool:
    """Whether ``target`` already has, whole, the files of a manifest, and says the same of them: one was faster."""
    there = sound(target, True, 0.0)  # with digests: the caller may have found it damaged by them
    if there is None or there.listed.keys() != manifest.listed.keys():
        return False
    return _identity(there.facts) == _identity(manifest.facts)


def _identity(facts: Facts) -> tuple[str, str | None, str]:
    """What is equal for all who publish one entry; the rest of what is known of a compile may differ."""
    return facts.kernel, facts.group, facts.tag


def link_view(
    root: str,
    source: str,
    target: str,
    manifest: Manifest,
    repair: bool,
    directory: str | None = None,
) -> bool:
    """Make ``target`` a view of the store's entry ``source``, unless it is whole; return whether it is whole now.

    Without ``repair`` (which needs the key's lock) only an absent or empty directory is filled. ``directory`` is
    another path of the device directory, for whoever may follow no link on the way (`within.Straight.held`).

    Raises:
        OSError: the disk refused; the view is as it was.
    """
    if directory is None:
        directory = os.path.dirname(target)
        make = make_below_root if directory.startswith(f"{root}/") else make_directory
        make(directory, OPEN_ABOVE)
    place = f"{directory}/{os.path.basename(target)}"
    modes = modes_for(target)
    aside = new_aside(directory, modes)
    try:
        placed, made = {}, []
        for name, sha256 in manifest.digests.items():
            placed[name], is_linked = _placed(f"{source}/{name}", f"{aside}/{name}", sha256, modes)
            if not is_linked:
                made.append(name)
        if not _give_manifest(root, source, aside, manifest, placed, modes):
            made.append(MANIFEST)
        group = manifest.facts.group
        write_group(aside, target, group, placed)
        if group is not None:
            made.append(f"{GROUP}{group}")
        _hand_over(aside, made, directory)
        if repair and _busy(place):
            return False
        return _put_in_place(root, aside, place, manifest, repair)
    finally:
        remove_tree(aside)


def _hand_over(made: str, names: Iterable[str], directory: str) -> None:
    """Give a new entry or view to the owner of the directory that it comes to, where root works for another user."""
    if os.geteuid() != 0:
        return
    here = os.open(made, DIRECTORY)
    try:
        placing.hand_over(here, names, os.stat(directory))
    finally:
        os.close(here)


def _busy(target: str) -> bool:
    """Whether stock Triton, which knows no lock of ours, may be filling the directory."""
    if os.path.lexists(f"{target}/{MANIFEST}") or placing.is_half_made(target):
        return False
    return placing.youngest_s(target) < BUSY_S


def _placed(source: str, target: str, sha256: str, modes: Modes) -> tuple[Published, bool]:
    """Hard-link a file of this digest, or copy it where it cannot be linked, or has not the modes of the root.

    Returns how a manifest lists the file, and whether it was linked.
    """
    is_linked = placing.link_or_copy(source, target, modes)
    found = os.stat(target)
    return Published(found.st_size, found.st_mtime_ns, sha256), is_linked


def _give_manifest(
    root: str,
    source: str,
    target: str,
    manifest: Manifest,
    placed: Mapping[str, Published],
    modes: Modes,
) -> bool:
    """Give a view its manifest: the store's own if its files are too, so that a stamp on one is a stamp on all.

    Returns whether it is the store's own.

    That of a copy names the root: the view may be outside, and is then known for one of this store.
    """
    if placed == manifest.files:
        linked = placing.link_or_copy(f"{source}/{MANIFEST}", f"{target}/{MANIFEST}", modes)
        if linked:
            return True
        os.unlink(f"{target}/{MANIFEST}")
    # Copied: perhaps to a file system with coarser times, or to one that keeps its own.
    copied = manifest._replace(listed=placed, root=os.path.realpath(root))
    write_manifest(target, copied)
    return False
