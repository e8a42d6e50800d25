"""`difference`: tells why two entries of one kernel differ. Reads only: no lock, no stamp, no Triton.

What the key was made of is compared first (`gpucache.kernels.differences`), then what was compiled, where that tells
more. Not all of the key is on disk (`gpucache.kernels.ingredients`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

from gpucache.disk.reading import digest, read
from gpucache.environment import LINE_INFO
from gpucache.errors import GpuCacheError
from gpucache.kernels.differences import Difference, are_of_one_compiler, differences
from gpucache.kernels.ingredients import Ingredients, ingredients_in
from gpucache.kernels.metadata import Metadata
from gpucache.kernels.mlir import LOCATION, CodeLine, Places, code_lines
from gpucache.report.directory_metadata import group_in

_LINE = re.compile(r'\bloc\("([^"]+)":(\d+):\d+')
_FUNCTION = re.compile(
    r"tt\.func public @[^(]*\((.*)\) attributes|tt\.func public @[^(]*\((.*)\) \{"
)

_LIBRARIES = "extern_libs"
_FORMS = (".source", ".ttir")
"""The first forms of a kernel; ``.source`` is there from Triton 3.4 on."""
_CHANGES_CODE = {
    "kernel",
    "target",
    "triton",
    "environment",
    "option",
    "constant",
    "signature",
    "global",
}
"""Kinds of a difference from which another code follows."""


def difference(a: str, b: str) -> tuple[Difference, ...]:
    """Why two entries (directories) of one kernel are two, as far as their files tell; empty where they do not.

    Where one has no recipe, its constants and types have no names: then ``code``, the first line that
    differs, tells of a constant too, and ``unseen`` says that the text of one of them was removed
    (`prune --keep-binaries`), so that more may differ than is told. What only follows from another target or version
    is left out.

    Raises:
        GpuCacheError: one of them is not the directory of a kernel.
    """
    one = _kernel(a)
    other = _kernel(b)
    is_alike = _written_alike(one.made.metadata, other.made.metadata)
    forms = _first_forms(one.files, other.files) if is_alike else None
    is_one_code = forms is not None and _is_one_code(*forms)

    def rekey(line: int) -> str | None:
        return one.made.cache_key if is_one_code else None

    found = [*differences(one.made, other.made, rekey)]
    found += _libraries_differ(one.made.metadata, other.made.metadata)
    kinds = {each.kind for each in found}
    if one.made.recipe is None or other.made.recipe is None:
        if forms is not None:
            found += _sources(*forms)
        elif is_alike:
            there = (_is_there(one.files), _is_there(other.files))
            found.append(Difference("unseen", "source", *there))
    elif forms is not None and not is_one_code and kinds.isdisjoint(_CHANGES_CODE):
        found += _code(*forms)
    if not found:
        found += _assembler(one.files, other.files)
    return tuple(found)


class _Kernel(NamedTuple):
    """One of the two kernels."""

    files: str
    """The path of its files, without what tells one from the other: ``<KEY>/add`` of ``<KEY>/add.ttir``."""
    made: Ingredients


def _kernel(directory: str) -> _Kernel:
    group = group_in(directory)
    if group is not None:
        kernel = group.removesuffix(".json")
        made = ingredients_in(directory, kernel)
        if made is not None:
            return _Kernel(f"{directory}/{kernel}", made)
    problem = f"{directory}: there is no compiled kernel"
    raise GpuCacheError(problem, "name the directory <KEY>/ of one, in the store or for a device")


# ---- libraries


def _libraries_differ(a: Metadata, b: Metadata) -> Iterator[Difference]:
    """Tell if other libraries are linked in; their content is in the key, their paths are not."""
    one, other = a.options.get(_LIBRARIES), b.options.get(_LIBRARIES)
    if one == other or not are_of_one_compiler(a, b) or _are_same_libraries(one, other):
        return
    yield Difference("option", _LIBRARIES, json.dumps(one), json.dumps(other))


def _are_same_libraries(a: object, b: object) -> bool:
    """Whether libraries at two paths are equal."""
    try:
        return _libraries(a) == _libraries(b)
    except (OSError, TypeError, ValueError):
        return False


def _libraries(option: object) -> list[tuple[str, str]]:
    """The name and the SHA-256 of each library in the value of the option ``extern_libs``."""
    if not isinstance(option, list):
        return []
    return [(name, digest(path)[0]) for name, path in option]


# ---- what was compiled


def _written_alike(a: Metadata, b: Metadata) -> bool:
    """Whether one frontend wrote the first form of both kernels, with names and lines in both or in neither."""
    if a.triton_version != b.triton_version:
        return False
    return a.environment.get(LINE_INFO) == b.environment.get(LINE_INFO)


def _first_forms(a: str, b: str) -> tuple[str, str] | None:
    """The texts of the first form of which the files of both kernels are there; None where there is none."""
    for ending in _FORMS:
        one = _form(a, ending)
        other = _form(b, ending)
        if one is not None and other is not None:
            return one, other
    return None


def _form(files: str, ending: str) -> str | None:
    """The text of a kernel in one of its forms; None where the entry has it not."""
    try:
        return read(f"{files}{ending}").decode(errors="replace")
    except OSError:
        return None


def _is_there(files: str) -> str:
    return "there" if _form(files, ".ttir") else "removed"


def _is_one_code(a: str, b: str) -> bool:
    """Whether two texts of one form are one code, but for where it stands."""
    return _texts(a) == _texts(b) and _arguments(a) == _arguments(b)


def _texts(form: str) -> list[str]:
    return [line.text for line in code_lines(form)]


def _sources(a: str, b: str) -> list[Difference]:
    """Tell the first kind of thing in which two texts of one form differ: arguments, else code, else lines."""
    return [*_signatures(a, b)] or [*_code(a, b)] or [*_locations(a, b)]


def _signatures(a: str, b: str) -> Iterator[Difference]:
    pairs = zip_longest(_arguments(a), _arguments(b))
    for number, (one, other) in enumerate(pairs):
        if one == other:
            continue
        name, _ = _parted(one or other or "")
        yield Difference("signature", name or str(number), _type(one), _type(other))


def _arguments(text: str) -> list[str]:
    """``%x: !tt.ptr<f32> {tt.divisibility = 16 : i32}`` and so on, without locations."""
    match = _FUNCTION.search(LOCATION.sub("", text))
    if match is None:
        return []
    arguments = match[1] or match[2] or ""
    parts = [part.strip() for part in re.split(r",\s*(?=%)", arguments)]
    return [part for part in parts if part]


def _type(argument: str | None) -> str | None:
    """The type of an argument; None where the kernel has no such argument."""
    if argument is None:
        return None
    _, kind = _parted(argument)
    return kind


def _parted(argument: str) -> tuple[str, str]:
    """The name of an argument, without its ``%``, and its type."""
    name, _, kind = argument.partition(":")
    return name.strip().removeprefix("%"), kind.strip()


def _code(a: str, b: str) -> Iterator[Difference]:
    """Tell the first line that differs; the first is enough, since the names of all values after it differ as well."""
    nothing = CodeLine("", None)
    for one, other in zip_longest(code_lines(a), code_lines(b), fillvalue=nothing):
        if one.text != other.text:
            place = Places(b).place(other.location) or Places(a).place(one.location)
            where = "" if place is None else os.path.basename(place)
            yield Difference("code", where, one.text or None, other.text or None)
            return


def _locations(a: str, b: str) -> Iterator[Difference]:
    """Tell the first location whose line differs; the file is not in the key, the line is."""
    pairs = zip(_LINE.findall(a), _LINE.findall(b), strict=False)
    for (path, line), (other_path, other_line) in pairs:
        if line != other_line:
            one, other = f"{path}:{line}", f"{other_path}:{other_line}"
            yield Difference("location", "line", one, other)
            return


def _assembler(a: str, b: str) -> Iterator[Difference]:
    """Tell of another ptxas: of the same PTX, but for the version Triton lets it choose, it made another binary."""
    one, other = _assembled(a), _assembled(b)
    if one is None or other is None or one == other:
        return
    if one.text == other.text:
        yield Difference("assembler", "ptxas", one.shown, other.shown)


class _Assembled(NamedTuple):
    """What ptxas was given, and what it made."""

    text: str
    """The PTX without its version."""
    shown: str
    """The version, and the beginning of the binary's digest."""


def _assembled(files: str) -> _Assembled | None:
    text = _form(files, ".ptx")
    if text is None:
        return None
    try:
        sha256, _ = digest(f"{files}.cubin")
    except OSError:
        return None
    version = re.search(r"^\.version (\S+)", text, re.MULTILINE)
    number = "?"
    if version is not None:
        number = version[1]
        text = text.replace(version[0], "")
    return _Assembled(text, f"PTX {number}, {sha256[:12]}")
