"""Recognise what Triton's own cache manager left in a device directory, whole, and adopt it as an entry."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping

from gpucache.disk.door import opener
from gpucache.disk.files import remove_tree
from gpucache.disk.sharing import modes_like, new_aside
from gpucache.kernels.elf import is_whole_elf
from gpucache.kernels.group import GROUP, read_group, write_group
from gpucache.layout.keys import is_key_of, view_key
from gpucache.layout.paths import host_name
from gpucache.store.condemned import is_going
from gpucache.store.manifest import CONDEMNED, MANIFEST, Facts, Manifest, Published, write_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.reading import Opener

BUSY_S = 120.0
"""Stock Triton, which takes no lock of ours, may be at work in a directory with something younger than this."""


def stock_group(
    directory: str,
    filename: str,
    condemned: bool = False,
    opener: Opener = opener,
) -> dict[str, str] | None:
    """The paths, by name, of a kernel's files that Triton's own manager left in a directory; None if not whole.

    The paths in a ``__grp__`` file are absolute and may point to where the directory was copied from, so that only the
    names are taken. A metadata file that does not parse would crash Triton at every start. With ``condemned`` also the
    files of a view are given, whose manifest the caller has renamed. ``opener`` is `open`'s, for the kernel's files.
    """
    ours = os.path.lexists(f"{directory}/{MANIFEST}")
    going = os.path.lexists(f"{directory}/{CONDEMNED}")
    if ours or (going and not condemned):
        return None  # a view of ours, which was found damaged or is to go
    try:
        children = read_group(f"{directory}/{GROUP}{filename}")
        if children is None or len(children) < 2 or filename not in children:
            return None
        files = {name: f"{directory}/{name}" for name in children}
        for path in files.values():
            if not is_whole_elf(path, opener):
                return None
        if not _is_metadata_of(directory, files[filename], opener):
            return None
        return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_metadata_of(directory: str, path: str, opener: Opener) -> bool:
    """Whether Triton can read a metadata file, and it is that of the kernel by whose key the directory is named.

    What a file without JSON, or with JSON of another shape, raises here, `stock_group` catches.
    """
    with open(path, encoding="utf-8", opener=opener) as file:
        known = json.load(file)
    if not known["target"] or not known["name"]:
        return False
    key = os.path.basename(directory)
    return is_key_of(key, str(known.get("hash")))


def describe(
    directory: str,
    digests: Mapping[str, str],
    facts: Facts,
    origin: str | None = None,
    key: str | None = None,
    recipe: str | None = None,
) -> None:
    """Make a whole directory of Triton's own a view: give it a manifest, and a group file with the paths in it.

    ``digests`` are the SHA-256 of its files by name; ``origin`` is where they were compiled, if not on this host.
    ``key`` is Triton's, if that is not the directory's name; ``recipe`` the digest of the stored entry's recipe.

    Raises:
        OSError: the disk refused; the directory is as it was.
    """
    beside = os.path.dirname(directory)
    aside = new_aside(beside, modes_like(directory))
    try:
        files = {}
        for name, sha256 in digests.items():
            found = os.stat(f"{directory}/{name}")
            files[name] = Published(found.st_size, found.st_mtime_ns, sha256)
        key = key or view_key(os.path.basename(directory))
        manifest = Manifest(facts, files, origin or host_name(), key, recipe=recipe)
        write_manifest(aside, manifest)
        write_group(aside, directory, facts.group, files)
        # The manifest last: it says that all is in order. Its name is the lower one of the two.
        for name in sorted(os.listdir(aside), reverse=True):
            os.rename(f"{aside}/{name}", f"{directory}/{name}")
        # What is condemned by now is being removed. A removal that condemns it later sees our manifest, and puts back
        # the rest.
        if is_going(directory):
            raise FileNotFoundError(errno.ENOENT, "it is being removed", directory)
    finally:
        remove_tree(aside)
