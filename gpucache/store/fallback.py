"""Copy an entry of another root's store, the *fallback*, into one's own: found, vetted, copied and verified.

A fallback is another user's root that this user may read: a team's, or one in an image. An entry found there is copied,
and never linked or used in place, since its owner may change or remove what is there at any moment. What is believed is
what was copied: the key and each digest are compared with the bytes that this process has written. Nothing is written
there, and no lock is taken there: the owner's ranks and commands do not notice a reader, but by access times.
"""

from __future__ import annotations

import hashlib
import os

from gpucache.disk.door import DIRECTORY, HASHED_BYTES, METADATA_BYTES, read_limited
from gpucache.disk.files import remove_tree
from gpucache.disk.sharing import new_file
from gpucache.kernels.metadata import identity_in
from gpucache.kernels.recipe import MOST_BYTES as MOST_RECIPE_BYTES
from gpucache.layout import paths
from gpucache.layout.keys import is_key_of, view_key
from gpucache.store.fallback_entry import Away, Entry, Fallback, opened, opened_entry, reading
from gpucache.store.manifest import (
    MANIFEST,
    RECIPE,
    Manifest,
    Published,
    entry_path,
    write_manifest,
)
from gpucache.store.publish import publish_directory
from gpucache.store.recipe_file import recipe_digest, write_recipe
from gpucache.store.turn import Turn
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpucache.disk.staging import Staging
    from gpucache.store.fallback_entry import Did

_MOST_IN_MEMORY = 256 * 2**20


class Answer(Value):
    """What came of asking a fallback for an entry."""

    did: Did
    said: str = ""
    """Which path, and what is wrong with it; empty for a hit and a miss."""
    size_bytes: int = 0
    """What a copied entry takes in the own store; of one that was only read, its files."""
    contents: Mapping[str, bytes] | None = None
    """The files, by name, of an entry that was only read."""


def copy_entry(
    fallback: Fallback,
    root: str,
    store_key: str,
    staging: Staging,
    repair: bool,
    turn: Turn | None = None,
) -> Answer:
    """Copy the entry of a key in the store from a fallback into the store of ``root``, a root that was prepared.

    ``repair`` is as for `publish.publish_entry`: it needs the key's lock. Never raises for what the fallback has, or
    the disk says. Beside any readers, writers and removers of both roots, by whichever user; killed at any instant, the
    own store has the whole entry or none. Whoever need not wait for a mount that does not answer has this done in
    another thread, and leaves the ``turn``: then nothing is published. Limit: at most a GiB is copied.
    """
    return _asked(
        fallback,
        root,
        store_key,
        turn or Turn(),
        lambda entry: _copied(entry, entry.manifest(), root, staging, repair),
    )


def read_entry(fallback: Fallback, root: str, store_key: str, turn: Turn | None = None) -> Answer:
    """Read the files of the same entry, with the same checks, for a process whose own store cannot take them.

    Never raises for what the fallback has. ``turn`` is as for `copy_entry`. Limit: at most 256 MiB are read.
    """
    return _asked(fallback, root, store_key, turn or Turn(), _contents)


def looked_at(fallback: Fallback, root: str) -> Answer:
    """Look at a fallback as `copy_entry` does on its way, as far as to the store: ``hit`` where that can be listed.

    Never raises for what is there. Nothing of an entry is looked at.
    """
    try:
        below = paths.ours("", "store").split("/")[1:]
        with opened(fallback, root, below, Turn()) as (fd, path):
            with reading(path):
                os.close(os.open(".", DIRECTORY, dir_fd=fd))
            return Answer("hit")
    except Away as away:
        return Answer(away.did, away.said)


def _asked(
    fallback: Fallback,
    root: str,
    store_key: str,
    turn: Turn,
    take: Callable[[Entry], Answer],
) -> Answer:
    try:
        with opened_entry(fallback, root, store_key, turn) as entry:
            return Answer("miss") if entry is None else take(entry)
    except Away as away:
        return Answer(away.did, away.said)
    except OSError as error:
        return Answer("disk", _words(error))


def has_entry(root: str, store_key: str) -> bool:
    """Whether something lies at the place of an entry in a fallback; nothing is vetted or read."""
    return os.path.lexists(f"{entry_path(root, store_key)}/{MANIFEST}")


def _copied(entry: Entry, manifest: Manifest, root: str, staging: Staging, repair: bool) -> Answer:
    """Copy an entry into a private directory, look at what was copied, and publish that."""
    aside = staging.directory()
    try:
        placed = {}
        for name, published in manifest.files.items():
            placed[name] = _copied_file(entry, name, published, aside)
        group = manifest.facts.group
        if group is not None:
            _check_key(entry, read_limited(f"{aside}/{group}", METADATA_BYTES))
        recipe = _recipe(entry, manifest)
        digest = None if recipe is None else write_recipe(aside, recipe)
        own = manifest._replace(listed=placed, root=None, recipe=digest)
        write_manifest(aside, own)
        names = [*placed, MANIFEST, RECIPE]
        if not entry.turn.may_act():
            return Answer("miss")  # nobody hears it
        if not publish_directory(root, entry.store_key, aside, own, repair, names):
            return Answer("miss")
    finally:
        remove_tree(aside)
    return Answer("hit", size_bytes=_size_bytes(own, recipe))


def _size_bytes(manifest: Manifest, recipe: bytes | None) -> int:
    size = len(manifest.encoded()) + len(recipe or b"")
    return size + sum(published.size_bytes for published in manifest.files.values())


def _copied_file(entry: Entry, name: str, published: Published, aside: str) -> Published:
    """Copy a file; how a manifest lists the copy.

    Raises:
        OSError: the own disk refused.
    """
    target = f"{aside}/{name}"
    digest = hashlib.sha256()
    fd = new_file(target, os.O_WRONLY)
    try:
        for piece in entry.pieces(name, HASHED_BYTES, published.size_bytes):
            digest.update(piece)
            _write(fd, piece)
    finally:
        os.close(fd)
    _check_digest(entry, name, digest.hexdigest(), published)
    # By path and after the closing: a network file system sets the time then.
    found = os.stat(target)
    return Published(found.st_size, found.st_mtime_ns, published.sha256)


def _check_digest(entry: Entry, name: str, sha256: str, published: Published) -> None:
    if sha256 != published.sha256:
        raise entry.damaged(f"{name} has another content than was published")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _check_key(entry: Entry, metadata: bytes) -> None:
    """Compare what was copied with the key: a kernel's metadata has the hash that the key is made of.

    Nothing proves the key of a file that stands for itself; the name of its entry proves its name and tag.
    """
    try:
        found = identity_in(metadata)
    except ValueError as error:
        raise entry.damaged(str(error)) from None
    if not found.hash or not is_key_of(view_key(entry.store_key), found.hash):
        raise entry.damaged("its metadata are those of another key")


def _contents(entry: Entry) -> Answer:
    """Read an entry, and look at what was read."""
    manifest = entry.manifest()
    size = sum(published.size_bytes for published in manifest.files.values())
    if size > _MOST_IN_MEMORY:
        raise entry.damaged("its files are longer than any that are kept in memory")
    contents = {}
    for name, published in manifest.files.items():
        pieces = entry.pieces(name, _MOST_IN_MEMORY, published.size_bytes)
        contents[name] = b"".join(pieces)
        _check_digest(entry, name, hashlib.sha256(contents[name]).hexdigest(), published)
    if manifest.facts.group is not None:
        _check_key(entry, contents[manifest.facts.group])
    return Answer("hit", size_bytes=size, contents=contents)


def _recipe(entry: Entry, manifest: Manifest) -> bytes | None:
    """The recipe, if it is the one that was published. An entry is whole without."""
    wanted = recipe_digest(manifest)
    if wanted is None:
        return None
    try:
        data = b"".join(entry.pieces(RECIPE, MOST_RECIPE_BYTES))
    except Away:
        return None
    return data if hashlib.sha256(data).hexdigest() == wanted else None


def _words(error: OSError) -> str:
    """What the own disk has refused, and where."""
    what = os.strerror(error.errno) if error.errno else str(error)
    return f"{error.filename}: {what}" if error.filename else what
