"""The file ``__recipe__.json`` of a stored entry: by what it says, the kernel can be compiled again.

It lies in the store alone, never in a view, and is none of the entry's published files: no hit opens it, and an entry
whose recipe is damaged is as whole as one without. Its SHA-256 stands in the entry's manifest. What the recipe says,
`gpucache.kernels.recipe` knows; here it is bytes.

An entry that was published without gets its recipe later, and with it another manifest: the views in device directories
have the manifest of the store by a hard link, by which a use of one is a use of all, so that they get the new one too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from contextlib import suppress
from typing import Literal, NamedTuple

from gpucache.disk.capabilities import is_refusal
from gpucache.disk.door import DIRECTORY, open_regular
from gpucache.disk.files import remove_tree, write_new
from gpucache.disk.reading import read
from gpucache.disk.refusal import may
from gpucache.disk.sharing import modes_like, new_aside
from gpucache.disk.within import Straight
from gpucache.kernels.recipe import MOST_BYTES
from gpucache.layout.keys import ASIDE, device_directories, view_key
from gpucache.layout.paths import root_of_stored
from gpucache.store.foreign import foreign_directories, view_at
from gpucache.store.key_lock import holding
from gpucache.store.manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    read_manifest,
    write_manifest,
)
from gpucache.store.placing import hand_over, set_use
from gpucache.store.size import updated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_DIGEST = re.compile(r"[0-9a-f]{64}")

Why = Literal["none", "missing", "changed", "unreadable"]


class NoRecipe(NamedTuple):
    """Why an entry has no recipe that can be read."""

    why: Why
    """``none``: its manifest tells of none; ``missing``: the file that it tells of is not there; ``changed``: the file
    has other content, or is none; ``unreadable``: the disk, or the file's permissions, refuse."""
    fact: str


def recipe_digest(manifest: Manifest) -> str | None:
    """The SHA-256 of an entry's recipe as its manifest tells it; None where it tells of none."""
    said = manifest.recipe
    if said is None or not _DIGEST.fullmatch(said):
        return None
    return said


def lacks_recipe(entry: str, manifest: Manifest) -> bool:
    """Whether a stored entry is to get a recipe: its manifest tells of none, or of a file that is not there.

    That an older gpucache leaves, which makes an entry again of a view. Costs a system call at most; whether the file
    is whole, `gpucache verify` looks.
    """
    if manifest.recipe is None:
        return True
    return recipe_digest(manifest) is not None and not os.path.lexists(f"{entry}/{RECIPE}")


def read_recipe(entry: str, manifest: Manifest) -> bytes | None:
    """The recipe of a stored entry; None where there is none that can be read and is the one that was published."""
    found = recipe_in(entry, manifest)
    return None if isinstance(found, NoRecipe) else found


def recipe_in(entry: str, manifest: Manifest) -> bytes | NoRecipe:
    """The recipe of a stored entry, or why there is none. Reads a mebibyte at most, waits for nobody."""
    digest = recipe_digest(manifest)
    if digest is None:
        return NoRecipe("none", "its manifest tells of none")
    try:
        data = read(f"{entry}/{RECIPE}", MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return NoRecipe("missing", "it is not there")
    except OSError as error:
        why: Why = "changed" if _is_no_file(error) else "unreadable"
        return NoRecipe(why, error.strerror or str(error))
    found = _sha256(data)
    if found != digest:
        fact = f"SHA-256 is {found[:16]}…, and was published as {digest[:16]}…"
        return NoRecipe("changed", fact)
    return data


def write_recipe(directory: str, recipe: bytes) -> str | None:
    """Write the recipe of a directory that is not an entry yet; its SHA-256, or None where it is too long to be read.

    Raises:
        OSError: the disk refused; nothing is left.
    """
    if len(recipe) > MOST_BYTES:
        return None
    write_new(f"{directory}/{RECIPE}", recipe)
    return _sha256(recipe)


def add_recipe(entry: str, view: str, key: str, recipe: bytes, lock: Callable[[], str]) -> bool:
    """Give a stored entry that has no recipe this one, and the views of the entry its new manifest.

    Returns whether the entry has a recipe now: this one, or its own. Called at a use of the entry, which is stamped so.

    ``view`` is that of this process, ``key`` Triton's, and ``lock`` gives the path of the key's lock. Where another
    process holds that, or something of this cannot be written, the entry stays as it is, and so it does where it is no
    kernel's or does not say its key (`gpucache.store.identity`). Beside any readers, writers and removers; killed at
    any instant, entry and views are whole, and the next call completes what was begun. A view that another process
    makes at this very moment may keep the former manifest: `gpucache.store.eviction` and `prune` ask each directory of
    an entry for its last use.
    """
    try:
        with holding(lock(), "its recipe") as held:
            if not held:
                return False
            return _added(entry, view, key, recipe)
    except OSError:
        return False


def _added(entry: str, view: str, key: str, recipe: bytes) -> bool:
    parent, name = os.path.split(entry)
    entry = f"{os.path.realpath(parent)}/{name}"
    found = read_manifest(entry)
    if found is None or not _takes_recipe(found[0], key):
        return False
    manifest = found[0]
    there = recipe_in(entry, manifest)
    with Straight() as disk:
        views = _views_of(entry, manifest, view, disk)
        if not isinstance(there, NoRecipe):
            _share(entry, views, disk)
            return True
        places = (entry, *views, *map(os.path.dirname, views))
        writable = all(may(place, os.W_OK | os.X_OK) for place in places)
        if there.why == "unreadable" or not writable:
            return False  # or uses would be stamped on two manifests
        return _replaced(entry, manifest._replace(recipe=_sha256(recipe)), recipe, views, disk)


def _takes_recipe(manifest: Manifest, key: str) -> bool:
    """Whether an entry may get a recipe: it is the kernel of this key, and nothing else has the name of the file."""
    if manifest.key != key or manifest.facts.group is None or RECIPE in manifest.listed:
        return False
    # What a newer gpucache has written there is left alone.
    return manifest.recipe is None or recipe_digest(manifest) is not None


def _replaced(
    entry: str, manifest: Manifest, recipe: bytes, views: Sequence[str], disk: Straight
) -> bool:
    """Bring a recipe to an entry, and the manifest that tells of it to the entry and its views.

    Raises:
        OSError: the disk refused. The entry has its former manifest; some views may have the new one.
    """
    aside = new_aside(os.path.dirname(entry), modes_like(entry))
    try:
        if write_recipe(aside, recipe) is None:
            return False
        write_manifest(aside, manifest)
        _hand_over(aside, entry)
        grown_bytes = _size(aside) - _size(entry)
        os.rename(f"{aside}/{RECIPE}", f"{entry}/{RECIPE}")
        # The views first: as long as the store's manifest tells of no recipe, the next call does all this again.
        _share(aside, views, disk)
        # By name: where a removal has condemned the former one meanwhile, it sees the new one, and gives way.
        os.rename(f"{aside}/{MANIFEST}", f"{entry}/{MANIFEST}")
    finally:
        remove_tree(aside)
    with suppress(OSError):  # or the next count of the store finds them
        updated(root_of_stored(entry), grown_bytes)
    return True


def _size(directory: str) -> int:
    """The bytes of the manifest and the recipe in a directory."""
    size = 0
    for name in (MANIFEST, RECIPE):
        with suppress(OSError):
            size += os.lstat(f"{directory}/{name}").st_size
    return size


def _hand_over(aside: str, entry: str) -> None:
    """Give what root has made to the owner of the entry to which it comes."""
    here = os.open(aside, DIRECTORY)
    try:
        hand_over(here, (MANIFEST, RECIPE), os.stat(entry))
    finally:
        os.close(here)


# ---- views


def share_manifest(entry: str, disk: Straight) -> None:
    """Give the views of a stored entry, whose manifest was written anew for its recipe's sake, that manifest.

    ``entry`` is a real path. For whoever holds the key's lock; a use that a view was stamped with is kept.

    Raises:
        OSError: the disk refused; some views may have the manifest, and some the former one.
    """
    with disk.directory(entry) as here:
        found = read_manifest(entry, MANIFEST, here)
    if found is not None:
        _share(entry, _views_of(entry, found[0], None, disk), disk)


def _views_of(entry: str, manifest: Manifest, view: str | None, disk: Straight) -> list[str]:
    """The views of an entry that have its manifest, or one that says the same but for the recipe; ``view`` may be one.

    A view that is a copy has a manifest of its own, which names the root, and keeps that.
    """
    root = root_of_stored(entry)
    key = view_key(os.path.basename(entry))
    places = [f"{device}/{key}" for _, device in device_directories(root)]
    if view is not None:
        own, name = os.path.split(view)
        places.append(f"{os.path.realpath(own)}/{name}")
    for foreign in foreign_directories(root):
        seen = view_at(foreign, root, key)
        if seen is not None and not seen.is_copy:
            places.append(seen.path)
    return [path for path in dict.fromkeys(places) if _has_alike(path, manifest, disk)]


def _has_alike(path: str, manifest: Manifest, disk: Straight) -> bool:
    """Whether a directory has a manifest which differs from the entry's in the recipe at most."""
    try:
        with disk.directory(path) as here:
            found = read_manifest(path, MANIFEST, here)
    except OSError:
        return False
    if found is None:
        return False
    return found[0]._replace(recipe=None) == manifest._replace(recipe=None)


def _share(source: str, views: Iterable[str], disk: Straight) -> None:
    """Give views the manifest of a directory, by hard links, with the latest use of all; a reader misses none.

    Raises:
        OSError: the disk refused.
    """
    shared = disk.lstat(f"{source}/{MANIFEST}")
    latest_ns = shared.st_mtime_ns
    for path in views:
        with disk.directory(path) as here:
            fd, former = open_regular(MANIFEST, here=here)
            try:
                if not os.path.samestat(shared, former) and _linked(source, path, disk):
                    # Asked once nobody can stamp the former one by its name any more.
                    latest_ns = max(latest_ns, os.fstat(fd).st_mtime_ns)
            finally:
                os.close(fd)
    if latest_ns > shared.st_mtime_ns:
        set_use(f"{source}/{MANIFEST}", latest_ns)


def _linked(source: str, view: str, disk: Straight) -> bool:
    """Put the manifest of a directory in the place of a view's, unless that is on another disk, or one without links.

    Raises:
        OSError: the disk refused; the view has its former manifest.
    """
    device, key = os.path.split(view)
    beside = f"{device}/{ASIDE}{key}.{os.getpid()}.{time.time_ns():x}"
    try:
        disk.link(f"{source}/{MANIFEST}", beside)
    except OSError as error:
        if is_refusal(error):
            return False
        raise
    disk.rename(beside, f"{view}/{MANIFEST}")
    return True


def _is_no_file(error: OSError) -> bool:
    """Whether an error says that something else than a file of a recipe's size is there."""
    return error.errno in (errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
