"""`collect`: one entry of a root, pinned, read again and found sound, as a pack is to have it.

An entry of the store, a view of one, or what stock Triton's own manager left. Its files get second names (hard links)
in a private directory below the root's ``tmp``, so that no removal takes them away while they are packed; where none
can be made, on a read-only disk, they are read where they are, and one that goes meanwhile ends the packing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.fits import fits_of_autotune, fits_of_library
from gpucache.archive.parsing import parsed
from gpucache.archive.statement import (
    ArchivedEntry,
    ArchivedFile,
    Kind,
    Statement,
    encoded,
)
from gpucache.disk.door import METADATA_BYTES
from gpucache.disk.files import remove_tree
from gpucache.disk.reading import digest, names, quietly, read, read_head
from gpucache.disk.staging import Staging
from gpucache.errors import GpuCacheError
from gpucache.kernels.elf import HEAD_BYTES, is_whole
from gpucache.kernels.group import AUTOTUNE, grouped_names
from gpucache.kernels.metadata import identity_in
from gpucache.kernels.recipe_paths import carried
from gpucache.kernels.stages import kept
from gpucache.layout.keys import KEY, is_key_of, view_key
from gpucache.store.manifest import MANIFEST, RECIPE, Facts, raise_unless_damage, read_manifest
from gpucache.store.names import can_be_named
from gpucache.store.placing import link_or_copy
from gpucache.store.recipe_file import read_recipe
from gpucache.store.stock import stock_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Why = Literal[
        "gone",
        "damaged",
        "unreadable",
        "odd",
        "another key",
        "kind",
        "unknown device",
        "unknown library",
    ]


class NotCollected(GpuCacheError):
    """An entry that no pack can have: it is gone, damaged, or nobody could tell where it may be used."""

    def __init__(self, path: str, why: Why, fact: str) -> None:
        hint = "`gpucache verify` tells what is damaged" if why == "damaged" else ""
        super().__init__(f"{path}: {fact}", hint, path, why, fact)
        self.path = path
        self.why: Why = why
        self.fact = fact


@dataclass(frozen=True, slots=True)
class Collected:
    """An entry as a pack is to have it, and where its files are now."""

    entry: ArchivedEntry
    paths: Mapping[str, str]
    """Of each file but the recipe."""
    recipe: bytes | None
    """The recipe without absolute paths, so that it is not the file of the store."""
    pinned: str | None
    """The private directory that holds the files; None where they are read where they lie."""

    def opened(self, file: ArchivedFile) -> BinaryIO:
        """Open one of the entry's files, without renewing its access time, which may be all that tells of a use.

        Raises:
            OSError: it cannot be read.
        """
        if file.name == RECIPE and self.recipe is not None:
            return io.BytesIO(self.recipe)
        return open(self.paths[file.name], "rb", opener=quietly)

    def unpin(self) -> None:
        """Remove the private directory; the entry itself stays. May be called twice."""
        if self.pinned is not None:
            remove_tree(self.pinned)


def collect(path: str, pins: Staging | None, *, slim: bool = False) -> Collected:
    """Pin and read the entry in a directory, which is the store's, a view of it, or one of stock Triton's.

    ``pins`` is the staging below whose directory the files are pinned; None pins nothing. ``slim`` leaves out what no
    launch needs. Beside any readers, writers and removers; changes nothing of the entry, and stamps no use.

    Raises:
        NotCollected: the entry is gone, damaged, or it cannot be told where it may be used.
        OSError: the disk does not answer.
    """
    try:
        return _collected(path, pins, slim)
    except (FileNotFoundError, NotADirectoryError):
        raise NotCollected(path, "gone", "it was removed meanwhile") from None
    except PermissionError as error:
        fact = f"{error.filename}: {error.strerror}"
        raise NotCollected(path, "unreadable", fact) from error


def _collected(path: str, pins: Staging | None, slim: bool) -> Collected:
    found = read_manifest(path)
    if found is not None:
        manifest = found[0]
        facts, key = manifest.facts, view_key(os.path.basename(path))
        if manifest.key is not None and manifest.key != key:
            raise NotCollected(path, "another key", f"its manifest is that of {manifest.key}")
        published: dict[str, str | None] = dict(manifest.digests)
        recipe = read_recipe(path, manifest)
    else:
        key = os.path.basename(path)
        facts, published = _stock(path)
        recipe = None
    wanted = [name for name in sorted(published) if facts.group is None or not slim or kept(name)]
    for name in wanted:
        if not can_be_named(name):
            fact = f"this locale lacks letters of {quoted(name)} (LC_ALL=C.UTF-8 has them)"
            raise NotCollected(path, "odd", fact)
    kind = _kind(path, facts)
    pinned, paths = _pinned(path, wanted, pins)
    try:
        files = [_file(path, name, paths[name], published[name]) for name in wanted]
        fits = _fits(path, kind, facts, paths)
        if facts.group is not None:
            facts = _as_metadata_say(path, key, facts, paths[facts.group])
        moved = None if recipe is None else carried(recipe)
        listed = None if moved is None else _listed(RECIPE, moved)
        entry = ArchivedEntry(key, kind, facts, tuple(files), listed, fits)
        _check_statement(path, entry)
    except BaseException:
        if pinned is not None:
            remove_tree(pinned)
        raise
    return Collected(entry, paths, moved, pinned)


def _stock(path: str) -> tuple[Facts, dict[str, str | None]]:
    """What stock Triton's own manager has in a directory: a whole group, or a file that stands for itself.

    Raises:
        NotCollected: neither, or not whole.
    """
    there = names(path)
    if MANIFEST in there or not KEY.fullmatch(os.path.basename(path)):
        raise NotCollected(path, "damaged", f"its {MANIFEST} cannot be understood, or is missing")
    for group in grouped_names(there):
        files = stock_group(path, group, opener=quietly)
        if files is None:
            continue
        return Facts(group.removesuffix(".json"), group), dict.fromkeys(files)
    for name in there:
        if name.endswith((".so", AUTOTUNE)):
            return Facts(name, None), {name: None}
    raise NotCollected(path, "damaged", "it is not whole, and has no manifest")


def _kind(path: str, facts: Facts) -> Kind:
    if facts.group is not None:
        return "kernel"
    if facts.kernel.endswith(".so"):
        return "library"
    if facts.kernel.endswith(AUTOTUNE):
        return "autotune"
    fact = f"{quoted(facts.kernel)} is no kernel, library or autotuner's result"
    raise NotCollected(path, "kind", fact)


def _pinned(
    path: str, wanted: list[str], pins: Staging | None
) -> tuple[str | None, dict[str, str]]:
    """Give the files second names in a private directory; that directory and the paths, or None and those they have.

    Raises:
        FileNotFoundError: the entry is being removed.
    """
    there = {name: f"{path}/{name}" for name in wanted}
    if pins is None:
        return None, there
    directory = None
    try:
        directory = pins.directory()
        for name in wanted:
            link_or_copy(there[name], f"{directory}/{name}")
    except FileNotFoundError:
        if directory is not None:
            remove_tree(directory)
        raise
    except OSError:  # read-only, or full: a disk of which one packs to make room may be
        if directory is not None:
            remove_tree(directory)
        return None, there
    return directory, {name: f"{directory}/{name}" for name in wanted}


def _file(entry: str, name: str, path: str, published: str | None) -> ArchivedFile:
    """Read a file for its size and digest, which must be the one that was published, if that is known.

    Raises:
        NotCollected: it has another content, or is no file.
    """
    try:
        sha256, found = digest(path)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise_unless_damage(error)
        raise NotCollected(entry, "damaged", f"{name}: {error.strerror or error}") from error
    if published is not None and sha256 != published:
        raise NotCollected(entry, "damaged", f"{name} has another content than was published")
    return ArchivedFile(name, found.st_size, sha256)


def _listed(name: str, data: bytes) -> ArchivedFile:
    from hashlib import sha256

    return ArchivedFile(name, len(data), sha256(data).hexdigest())


def _fits(path: str, kind: Kind, facts: Facts, paths: Mapping[str, str]) -> dict[str, str]:
    """Where the entry may be used beside its key.

    Raises:
        NotCollected: nobody can tell.
    """
    if kind == "autotune":
        fits = fits_of_autotune(facts.tag)
        if fits is None:
            raise NotCollected(path, "unknown device", "the device of its measurements is unknown")
        return fits
    if kind == "library":
        head, size = read_head(paths[facts.kernel], HEAD_BYTES)
        if not is_whole(head, size):
            raise NotCollected(path, "damaged", f"{facts.kernel} is not whole")
        fits = fits_of_library(facts.kernel, facts.tag, head)
        if fits is None:
            fact = f"{facts.kernel} does not tell its processor or Python"
            raise NotCollected(path, "unknown library", fact)
        return fits
    return {}


def _check_statement(path: str, entry: ArchivedEntry) -> None:
    """Refuse an entry for which a pack would be refused by whoever reads it, with all other entries.

    Raises:
        NotCollected: a text of it is too long or cannot be shown, a file is too large.
    """
    try:
        parsed(encoded(Statement("", 0, (entry,))))
    except BadPack as error:
        raise NotCollected(path, "odd", f"no pack can have it: {error.fact}") from error


def _as_metadata_say(path: str, key: str, facts: Facts, metadata: str) -> Facts:
    """The facts of a kernel, with the target and the version of its metadata file, which a manifest may leave out.

    Raises:
        NotCollected: the metadata are those of another key than the directory's name, or belie the manifest, or are
            none: whoever unpacks the entry would refuse that, and the pack with it.
    """
    try:
        found = identity_in(read(metadata, METADATA_BYTES))
    except ValueError as error:
        raise NotCollected(path, "damaged", str(error)) from error
    if not is_key_of(key, found.hash or ""):
        raise NotCollected(path, "another key", "its metadata are those of another key")
    version = found.triton_version or facts.triton_version
    said = (facts.target or found.target, facts.triton_version or version)
    if said != (found.target, version):
        raise NotCollected(
            path, "damaged", "its manifest tells of another target or Triton than its metadata"
        )
    return facts._replace(target=found.target, triton_version=version)
