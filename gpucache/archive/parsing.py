"""Reads a statement, of which nothing is believed: whoever has a trusted key may still have been robbed of it.

Raises nothing but `BadPack`, whose code tells the kind of flaw, and whose fact the entry.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.statement import (
    FORMAT,
    KINDS,
    MOST_BYTES,
    MOST_LINE_BYTES,
    MOST_MEMORY,
    MOST_NUMBER,
    REQUIRED_FITS,
    VERSION,
    ArchivedEntry,
    ArchivedFile,
    Kind,
    Statement,
    is_name,
)
from gpucache.archive.strict_json import (
    check_shown,
    list_in,
    object_in,
    seconds_or_none,
    shown,
    shown_or_none,
    whole,
)
from gpucache.disk.door import HASHED_BYTES
from gpucache.kernels.group import AUTOTUNE, GROUP, are_plain, group_files
from gpucache.kernels.recipe import MOST_BYTES as MOST_RECIPE_BYTES
from gpucache.layout.inductor import carried_unit
from gpucache.layout.keys import KEY
from gpucache.store.manifest import RECIPE, Facts
from gpucache.store.names import MOST_NAME_BYTES, OURS

_MOST_FITS = 16

_ENDS: dict[Kind, str] = {"library": ".so", "autotune": AUTOTUNE}
"""How the name of the only file ends, of the kinds that have one (`gpucache.kernels.group.STANDALONE`)."""


def parsed(data: bytes, begin: int = 0) -> Statement:
    """Read a statement, of which nothing is believed: every type, length, name, size and repeated key is checked.

    The statement is what ``data`` has from ``begin`` on, so that a long one need not be copied. Takes no more memory
    than `MOST_MEMORY` with ``data``, and some for a line, whatever that says.

    Raises:
        BadPack: the code and the fact say which entry has which flaw.
    """
    if len(data) - begin > MOST_BYTES:
        raise BadPack("too-long", f"the statement has more than {MOST_BYTES >> 20} MiB")
    lines = _lines(data, begin)
    name, number = _head(next(lines, b""))
    left = MOST_MEMORY - len(data)
    entries: list[ArchivedEntry] = []
    for line in _entry_lines(lines):
        try:
            entry = _entry(object_in(line))
        except BadPack as error:
            raise BadPack(error.code, f"entry {len(entries) + 1}: {error.fact}") from None
        left -= _memory(entry)
        if left < 0:
            fact = f"the statement takes more than {MOST_MEMORY // 10**6} MB of memory"
            raise BadPack("too-many", f"{fact} with its entry {len(entries) + 1}")
        entries.append(entry)
    _refuse_repeated(entries)
    return Statement(name, number, tuple(entries))


def _lines(data: bytes, begin: int) -> Iterator[bytes]:
    """Each line without its end.

    Raises:
        BadPack: a line is too long, or the last one has no end.
    """
    while begin < len(data):
        end = data.find(b"\n", begin, begin + MOST_LINE_BYTES)
        if end < 0:
            if len(data) - begin < MOST_LINE_BYTES:
                raise BadPack("format", "the statement's last line has no end")
            raise BadPack(
                "too-long", f"the statement has a line of more than {MOST_LINE_BYTES} bytes"
            )
        yield data[begin:end]
        begin = end + 1


def _head(line: bytes) -> tuple[str, int]:
    """The name and the number in the first line."""
    if not line.endswith(b',"entries":['):
        raise BadPack("format", "the statement's first line is not that of a pack")
    said = object_in(line + b"]}")
    if said.get("format") != FORMAT:
        raise BadPack("format", "the statement is of another format")
    version = said.get("version")
    if type(version) is not int:
        raise BadPack("version", "the statement's version is no whole number")
    if version != VERSION:
        raise BadPack("version", f"the statement is of version {version}, which is not known here")
    name = said.get("name")
    if type(name) is not str or not (name == "" or is_name(name)):
        raise BadPack("value", "the statement's name is not that of a pack")
    return name, whole(said.get("number"), MOST_NUMBER, "value", "the statement's number")


def _entry_lines(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of the entries, each without its comma; the last line ends the statement, and nothing follows."""
    waiting: bytes | None = None
    for line in lines:
        if line == b"]}":
            if waiting is not None:
                yield waiting
            if next(lines, None) is not None:
                raise BadPack("format", "the statement goes on after its end")
            return
        if waiting is not None:
            if not waiting.endswith(b","):
                raise BadPack("format", "an entry of the statement has no comma after it")
            yield waiting[:-1]
        waiting = line
    raise BadPack("format", "the statement has no end")


def _entry(said: dict[str, Any]) -> ArchivedEntry:
    kind = shown(said, "kind")
    if kind not in KINDS:
        raise BadPack("kind", f"its kind is {quoted(kind)}, which is not known here")
    facts = Facts(
        kernel=shown(said, "kernel"),
        group=shown_or_none(said, "group"),
        target=shown_or_none(said, "target"),
        triton_version=shown_or_none(said, "triton_version"),
        compile_s=seconds_or_none(said.get("compile_s")),
        tag=shown(said, "tag"),
    )
    key = shown(said, "key")
    files = tuple(_file(listed, kind) for listed in list_in(said, "files"))
    recipe = said.get("recipe")
    entry = ArchivedEntry(
        key,
        kind,
        facts,
        files,
        None if recipe is None else _recipe(recipe),
        _fits(said.get("fits", {})),
    )
    _check_entry(entry)
    if said.get("arch") != entry.arch:
        raise BadPack("value", "its arch is not that of its target")
    return entry


def _check_entry(entry: ArchivedEntry) -> None:
    """Check what no field shows alone: that key, kind, group and files agree."""
    names = {file.name for file in entry.files}
    if len(names) < len(entry.files):
        raise BadPack("repeated-name", "it has two files of one name")
    if not names:
        raise BadPack("value", "it has no files")
    is_kernel, is_inductor = entry.kind == "kernel", entry.kind == "inductor"
    if is_inductor != (entry.key == "") or not (is_inductor or KEY.fullmatch(entry.key)):
        raise BadPack("key", f"its key {quoted(entry.key)} is none of Triton's")
    group = entry.facts.group
    if (group is not None) != is_kernel:
        raise BadPack("group", "a kernel has a group, and nothing else has one")
    if group is not None and group not in names:
        raise BadPack("group", f"its group {quoted(group)} is none of its files")
    own = [f"{GROUP}{group}"]  # which each view gets
    if is_kernel and group_files([*names, *own]) != own:
        raise BadPack("file-name", "a file has the name of a group file, which holds paths")
    end = _ENDS.get(entry.kind)
    if end is not None and names != {entry.facts.kernel}:
        raise BadPack("group", "a file that stands for itself is not the one that it says")
    if end is not None and not entry.facts.kernel.endswith(end):
        raise BadPack(
            "kind", f"its kind is {entry.kind}, and its file's name does not end in {end}"
        )
    if is_inductor:
        _check_unit(entry)
    missing = REQUIRED_FITS[entry.kind] - entry.fits.keys()
    if missing:
        raise BadPack("fits", f"it does not say where it fits: {', '.join(sorted(missing))}")


def _check_unit(entry: ArchivedEntry) -> None:
    """Check that the files of TorchInductor's are those of one unit, by names that torch gives such files."""
    for file in entry.files:
        unit = carried_unit(file.name)
        if unit is None:
            raise BadPack("file-name", f"{quoted(file.name)} is no name of TorchInductor's")
        if unit != entry.facts.kernel:
            raise BadPack("group", f"{quoted(file.name)} is of another unit than the entry")
    if entry.recipe is not None:
        raise BadPack("value", "a recipe is not TorchInductor's")


def _refuse_repeated(entries: list[ArchivedEntry]) -> None:
    """Refuse two entries under one key; of TorchInductor's that is the unit, and no file is of two units."""
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        key = entry.store_key
        if key in seen:
            raise BadPack("repeated-key", f"entry {number}: {quoted(key)} is there twice")
        seen.add(key)


_SLOT_BYTES = 64  # in the list of entries, and in the set of what is there already
_size = sys.getsizeof


def _memory(entry: ArchivedEntry) -> int:
    """About how many bytes of memory an entry takes: a letter of JSON may become four bytes."""
    taken = sum(map(_size, entry)) + sum(map(_size, entry.facts)) + _size(entry)
    for file in entry.members:
        taken += sum(map(_size, file)) + _size(file)
    for name, value in entry.fits.items():
        taken += _size(name) + _size(value)
    return taken + _SLOT_BYTES


# ---- files


_DIGEST = re.compile(r"[0-9a-f]{64}")


def _file(listed: object, kind: str) -> ArchivedFile:
    if type(listed) is not list or len(listed) != 3:
        raise BadPack("value", "a file is not listed as name, size and digest")
    name, size_bytes, sha256 = listed
    if type(name) is not str:
        raise BadPack("file-name", "the name of a file is no text")
    _check_name(name, kind)
    whole(size_bytes, HASHED_BYTES, "size", f"the size of {quoted(name)}")
    if type(sha256) is not str or not _DIGEST.fullmatch(sha256):
        raise BadPack("digest", f"the digest of {quoted(name)} is none of SHA-256")
    return ArchivedFile(name, size_bytes, sha256)


def _check_name(name: str, kind: str) -> None:
    check_shown(name, "file name")
    parts = name.split("/") if kind == "inductor" else [name]
    if not are_plain(parts):
        raise BadPack("file-name", f"the file name {quoted(name)} leads elsewhere")
    if any(len(part.encode()) > MOST_NAME_BYTES for part in parts):
        raise BadPack("file-name", f"the file name {quoted(name)} is too long")
    if not OURS.isdisjoint(parts):
        raise BadPack("file-name", f"the file name {quoted(name)} is one of gpucache's own")


def _recipe(listed: object) -> ArchivedFile:
    if type(listed) is not list or len(listed) != 3 or listed[0] != RECIPE:
        raise BadPack("value", f"its recipe is not listed as {RECIPE}, size and digest")
    # checked as any other file but for the name, which no file of Triton's has
    _, size_bytes, sha256 = _file(["recipe", *listed[1:]], "kernel")
    if size_bytes > MOST_RECIPE_BYTES:
        raise BadPack("size", f"its recipe has more than {MOST_RECIPE_BYTES} bytes")
    return ArchivedFile(RECIPE, size_bytes, sha256)


def _fits(said: object) -> dict[str, str]:
    if type(said) is not dict or len(said) > _MOST_FITS:
        raise BadPack("fits", f"what it fits is no object of at most {_MOST_FITS} texts")
    for name, value in said.items():
        if type(value) is not str:
            raise BadPack("fits", f"what it fits, {quoted(name)}, is no text")
        check_shown(name, "fits")
        check_shown(value, "fits")
    return said
