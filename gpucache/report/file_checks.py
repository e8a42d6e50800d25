"""`examine`, `examine_stock`: every check of a single file of an entry, by what is in it; for `gpucache.report.judge`.

Reads only, and leaves no access time (`gpucache.disk.reading`).
"""

from __future__ import annotations

import json
import os
import stat
from typing import Literal, NamedTuple

from gpucache.disk.reading import read, read_digested, read_head
from gpucache.kernels import elf
from gpucache.kernels.group import AUTOTUNE
from gpucache.kernels.metadata import hash_in
from gpucache.layout.keys import is_key_of
from gpucache.report.flaws import FlawCode
from gpucache.store.manifest import Manifest
from gpucache.store.recipe_file import NoRecipe, recipe_in

_BINARIES = (".cubin", ".so")
_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
}

Check = Literal["metadata", "timings", "binary", "none"]


class Wrong(NamedTuple):
    """Why a file is of no use: the code of the flaw, and the fact."""

    code: FlawCode
    fact: str


class Examined(NamedTuple):
    """A file that was read from beginning to end."""

    sha256: str
    """In hexadecimal."""
    wrong: Wrong | None
    found: os.stat_result
    """The file as it was after the last byte was read."""


def no_file(found: os.stat_result | None) -> str | None:
    """Tell why the thing found under a file's name is no regular file; None for a regular file."""
    if found is None:
        return "it is not there"
    if stat.S_ISREG(found.st_mode):
        return None
    kind_bits = stat.S_IFMT(found.st_mode)
    kind = _KINDS.get(kind_bits, "device or socket")
    return f"a {kind} is in its place"


def examine(path: str, is_metadata: bool) -> Examined:
    """Read a published file once: its digest, and what is wrong with it whatever was published.

    Raises:
        OSError: it cannot be read.
    """
    check = _check_of(path, is_metadata)
    if check == "none" and path.endswith(_BINARIES):
        check = "binary"
    is_json = check in ("metadata", "timings")
    taken = read_digested(path, whole=is_json)
    size = taken.found.st_size
    wrong = _wrong(check, path, taken.data, size)
    return Examined(taken.sha256, wrong, taken.found)


def examine_stock(path: str, is_metadata: bool) -> Wrong | None:
    """Tell what is wrong with a file of stock Triton's, which left no digest; all but JSON is looked at as a binary is.

    Raises:
        OSError: it cannot be read.
    """
    check = _check_of(path, is_metadata)
    if check != "none":
        return _wrong(check, path, read(path), 0)
    head, size = read_head(path, elf.HEAD_BYTES)
    return _wrong("binary", path, head, size)


def damage_of_recipe(entry: str, manifest: Manifest) -> str | None:
    """Tell what is wrong with the recipe of a stored entry; None where nothing is, or its manifest tells of none."""
    found = recipe_in(entry, manifest)
    if not isinstance(found, NoRecipe) or found.why == "none":
        return None
    return found.fact


def _check_of(path: str, is_metadata: bool) -> Check:
    if is_metadata:
        return "metadata"
    return "timings" if path.endswith(AUTOTUNE) else "none"


def _wrong(check: Check, path: str, data: bytes, size: int) -> Wrong | None:
    """Tell what is wrong with a file of this content; of a binary, ``data`` may be the beginning only."""
    if check == "metadata":
        return _wrong_metadata(path, data)
    if check == "timings" and not _has_timings(data):
        return Wrong("autotune-torn", "it does not parse, or has no timings")
    if check == "binary":
        return _wrong_binary(data[: elf.HEAD_BYTES], size)
    return None


def _wrong_metadata(path: str, data: bytes) -> Wrong | None:
    try:
        digest = hash_in(data)
    except ValueError as error:
        return Wrong("metadata-torn", str(error))
    directory = os.path.dirname(path)
    key = os.path.basename(directory)
    if is_key_of(key, digest or ""):
        return None
    return Wrong("key-mismatch", f"it is of another kernel, whose hash is {digest}")


def _wrong_binary(head: bytes, size: int) -> Wrong | None:
    if elf.is_whole(head, size):
        return None
    if size == 0:
        return Wrong("binary-cut", "it is empty")
    fact = f"its {size} bytes are no ELF object, or fewer than its header says"
    return Wrong("binary-cut", fact)


def _has_timings(data: bytes) -> bool:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "configs_timings" in said
