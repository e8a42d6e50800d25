"""`difference`: tells why two entries of one kernel differ. Reads only: no lock, no stamp, no Triton.

Not all of the key is on disk. Triton's sources and its libtriton, the version of ptxas, comments and default arguments
of the kernel are in the key (`get_cache_key`, `runtime/cache.py` of Triton 3.9.0, and `src.hash`) and in no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

from gpucache.disk.reading import digest, read
from gpucache.environment import LINE_INFO
from gpucache.errors import GpuCacheError
from gpucache.kernels.metadata import Metadata
from gpucache.report.directory_metadata import group_in, metadata_in

# What `parse_options` of `backends/nvidia/compiler.py` (3.9.0) derives from the target.
_OF_THE_TARGET = """
arch supported_fp8_dtypes deprecated_fp8_dot_operand_dtypes deprecated_fp8_dtypes max_num_imprecise_acc_default
"""
_QUOTED = r'(?:[^()"]|"[^"]*")'
_LOCATION = re.compile(rf" ?\bloc\((?:{_QUOTED}|\((?:{_QUOTED}|\({_QUOTED}*\))*\))*\)")
_LINE = re.compile(r'\bloc\("([^"]+)":(\d+):\d+')
_FUNCTION = re.compile(
    r"tt\.func public @[^(]*\((.*)\) attributes|tt\.func public @[^(]*\((.*)\) \{"
)

_NO_CODE = ("#loc", "tt.func public")
"""How the lines of a form begin that are no code."""

Kind = Literal[
    "kernel",
    "target",
    "triton",
    "environment",
    "option",
    "signature",
    "source",
    "location",
    "assembler",
    "unseen",
]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two entries do not have in common."""

    kind: Kind
    """What differs; see `difference`."""
    name: str
    """Which variable, option, argument or file of that kind."""
    a: str | None
    """What the first entry has; None where it has no such thing."""
    b: str | None


def difference(a: str, b: str) -> tuple[Difference, ...]:
    """Why two entries (directories) of one kernel are two, as far as their files tell; empty where they do not.

    The kinds: ``kernel`` (they are not of one kernel), ``target`` (a device, or `TRITON_OVERRIDE_ARCH`), ``triton``
    (its version), ``environment`` (a variable that is part of the key), ``option``, ``signature`` (an argument's type
    or divisibility; a value that was 1, or is a constant), ``source`` (the first line of the kernel's first form that
    differs, as a constant does), ``location`` (the same code at another place), ``assembler`` (another ptxas).
    ``unseen``: the text of one of them was removed (`prune --keep-binaries`), so that more may differ than is told.
    What only follows from another target or version is left out.

    Raises:
        GpuCacheError: one of them is not the directory of a kernel.
    """
    one = _kernel(a)
    other = _kernel(b)
    found = [*_identities(one, other)]
    found += _environments(one, other)
    found += _options(one, other)
    if _written_alike(one, other):
        found += _sources(a, b)
    if not found:
        found += _assembler(a, b)
    return tuple(found)


def _kernel(directory: str) -> Metadata:
    found = metadata_in(directory)
    if found is None:
        problem = f"{directory}: there is no compiled kernel"
        raise GpuCacheError(
            problem, "name the directory <KEY>/ of one, in the store or for a device"
        )
    return found


# ---- what the metadata files say


def _identities(a: Metadata, b: Metadata) -> Iterator[Difference]:
    """Compare name, target, architecture and version."""
    if a.name != b.name:
        yield Difference("kernel", "name", a.name, b.name)
    if a.target != b.target:
        yield Difference("target", "target", a.target, b.target)
    elif a.arch != b.arch:
        yield Difference("target", "arch", a.arch, b.arch)
    if a.triton_version != b.triton_version:
        yield Difference("triton", "triton_version", a.triton_version, b.triton_version)


def _environments(a: Metadata, b: Metadata) -> Iterator[Difference]:
    names = a.environment.keys() | b.environment.keys()
    for name in sorted(names):
        one = a.environment.get(name)
        other = b.environment.get(name)
        if one != other:
            yield Difference("environment", name, one, other)


def _options(a: Metadata, b: Metadata) -> Iterator[Difference]:
    for name in _comparable_options(a, b):
        one = a.options.get(name)
        other = b.options.get(name)
        if one == other:
            continue
        if name == "extern_libs" and _are_same_libraries(one, other):
            continue
        yield Difference("option", name, _text(a, name), _text(b, name))


def _comparable_options(a: Metadata, b: Metadata) -> list[str]:
    """Name the options that tell of a choice, and do not follow from the target or from Triton's version."""
    if a.triton_version == b.triton_version and _backend(a) == _backend(b):
        names = a.options.keys() | b.options.keys()
    else:
        names = (a.options.keys() & b.options.keys()) - {"extern_libs"}
    is_one_target = (a.target, a.arch) == (b.target, b.arch)
    following = ["arch"]
    if not is_one_target:
        following = _OF_THE_TARGET.split()
    return sorted(names.difference(following))


def _backend(metadata: Metadata) -> str:
    return metadata.target.partition(":")[0]


def _text(metadata: Metadata, option: str) -> str | None:
    """An option's value as JSON; None where the kernel has no such option."""
    if option not in metadata.options:
        return None
    return json.dumps(metadata.options[option])


def _are_same_libraries(a: object, b: object) -> bool:
    """Whether libraries at two paths are equal: their content is in the key, their path is not."""
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


def _sources(a: str, b: str) -> Iterator[Difference]:
    """Compare the first form of the kernel that both entries have: ``.source`` from Triton 3.4 on, else ``.ttir``."""
    for ending in (".source", ".ttir"):
        one = _form(a, ending)
        other = _form(b, ending)
        if one is None or other is None:
            continue
        found = [*_signatures(one, other)]
        if not found:
            found += _code(ending, one, other)
        if not found:
            found += _locations(one, other)
        yield from found
        return
    yield Difference("unseen", "source", _is_there(a), _is_there(b))


def _is_there(directory: str) -> str:
    return "there" if _form(directory, ".ttir") else "removed"


def _form(directory: str, ending: str) -> str | None:
    """The text of a kernel in one of its forms; None where the entry has it not."""
    group = group_in(directory)
    if group is None:
        return None
    name = group.removesuffix(".json")
    try:
        return read(f"{directory}/{name}{ending}").decode(errors="replace")
    except OSError:
        return None


def _signatures(a: str, b: str) -> Iterator[Difference]:
    pairs = zip_longest(_arguments(a), _arguments(b))
    for number, (one, other) in enumerate(pairs):
        if one == other:
            continue
        name, _ = _parted(one or other or "")
        yield Difference("signature", name or str(number), _type(one), _type(other))


def _arguments(text: str) -> list[str]:
    """``%x: !tt.ptr<f32> {tt.divisibility = 16 : i32}`` and so on, without locations."""
    match = _FUNCTION.search(_LOCATION.sub("", text))
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


def _code(ending: str, a: str, b: str) -> Iterator[Difference]:
    """Tell the first line that differs; the first is enough, since the names of all values after it differ as well."""
    for one, other in zip_longest(_body(a), _body(b)):
        if one != other:
            yield Difference("source", ending.removeprefix("."), one, other)
            return


def _body(text: str) -> list[str]:
    """The lines of a form that are code, without locations."""
    bare = _LOCATION.sub("", text)
    lines = [line.strip() for line in bare.splitlines()]
    return [line for line in lines if line and not line.startswith(_NO_CODE)]


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


def _assembled(directory: str) -> _Assembled | None:
    text = _form(directory, ".ptx")
    group = group_in(directory)
    if text is None or group is None:
        return None
    name = group.removesuffix(".json")
    try:
        sha256, _ = digest(f"{directory}/{name}.cubin")
    except OSError:
        return None
    version = re.search(r"^\.version (\S+)", text, re.MULTILINE)
    number = "?"
    if version is not None:
        number = version[1]
        text = text.replace(version[0], "")
    return _Assembled(text, f"PTX {number}, {sha256[:12]}")
