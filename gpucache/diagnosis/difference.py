"""Why two entries of one kernel differ. Reads only: no lock, no stamp, no Triton.

Not all of the key is on disk. Triton's sources and its libtriton, the version of ptxas, comments and default arguments
of the kernel are in the key (`get_cache_key`, `runtime/cache.py` of Triton 3.9.0, and `src.hash`) and in no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from gpucache.disk.reading import digest, read
from gpucache.environment import LINE_INFO
from gpucache.errors import GpuCacheError
from gpucache.kernels.metadata import Metadata
from gpucache.report.directory import group_in, metadata_in

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


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two entries do not have in common."""

    kind: str
    """What differs; see `difference`."""
    name: str
    a: str | None
    """None where the first has no such thing."""
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
    one, other = _kernel(a), _kernel(b)
    found = [*_plain(one, other), *_environment(one, other), *_options(one, other)]
    if _written_alike(one) == _written_alike(other):
        found += _sources(a, b)
    return tuple(found) or tuple(_assembler(a, b))


def _kernel(directory: str) -> Metadata:
    found = metadata_in(directory)
    if found is None:
        raise GpuCacheError(
            f"{directory}: there is no compiled kernel",
            "name the directory <KEY>/ of one, in the store or for a device",
        )
    return found


def _written_alike(metadata: Metadata) -> tuple[str | None, ...]:
    """What else decides how a kernel's first form is written: the frontend, and whether it has names and lines."""
    return metadata.triton_version, metadata.environment.get(LINE_INFO)


def _plain(a: Metadata, b: Metadata) -> Iterator[Difference]:
    if a.name != b.name:
        yield Difference("kernel", "name", a.name, b.name)
    if a.target != b.target:
        yield Difference("target", "target", a.target, b.target)
    elif a.arch != b.arch:
        yield Difference("target", "arch", a.arch, b.arch)
    if a.triton_version != b.triton_version:
        yield Difference("triton", "triton_version", a.triton_version, b.triton_version)


def _environment(a: Metadata, b: Metadata) -> Iterator[Difference]:
    for name in sorted(a.environment.keys() | b.environment.keys()):
        if a.environment.get(name) != b.environment.get(name):
            yield Difference("environment", name, a.environment.get(name), b.environment.get(name))


def _options(a: Metadata, b: Metadata) -> Iterator[Difference]:
    alike = (
        a.triton_version == b.triton_version
        and a.target.partition(":")[0] == b.target.partition(":")[0]
    )
    names = (
        a.options.keys() | b.options.keys()
        if alike
        else (a.options.keys() & b.options.keys()) - {"extern_libs"}
    )
    follow = _OF_THE_TARGET.split() if (a.target, a.arch) != (b.target, b.arch) else ["arch"]
    for name in sorted(names.difference(follow)):
        one, other = a.options.get(name), b.options.get(name)
        if one != other and not (name == "extern_libs" and _same_libraries(one, other)):
            yield Difference(
                "option", name, _text(one, name in a.options), _text(other, name in b.options)
            )


def _text(value: object, there: bool) -> str | None:
    return json.dumps(value) if there else None


def _same_libraries(a: object, b: object) -> bool:
    """Whether libraries at two paths are equal: their content is in the key, their path is not."""
    try:
        return _libraries(a) == _libraries(b)
    except (OSError, TypeError, ValueError):
        return False


def _libraries(option: object) -> list[tuple[str, str]]:
    return [(name, digest(path)[0]) for name, path in option] if isinstance(option, list) else []


# ---- what was compiled


def _sources(a: str, b: str) -> Iterator[Difference]:
    """The kernel in the first form that both have: ``.source`` from Triton 3.4 on, else ``.ttir``."""
    for ending in (".source", ".ttir"):
        one, other = _form(a, ending), _form(b, ending)
        if one is not None and other is not None:
            changed = [*_signature(one, other)] or [*_code(ending, one, other)]
            yield from changed or _locations(one, other)
            return
    yield Difference(
        "unseen", "source", *("there" if _form(one, ".ttir") else "removed" for one in (a, b))
    )


def _form(directory: str, ending: str) -> str | None:
    group = group_in(directory)
    try:
        return read(f"{directory}/{str(group).removesuffix('.json')}{ending}").decode(
            errors="replace"
        )
    except OSError:
        return None


def _signature(a: str, b: str) -> Iterator[Difference]:
    for number, (one, other) in enumerate(zip_longest(_arguments(a), _arguments(b))):
        if one != other:
            name = (one or other or "").partition(":")[0].strip().removeprefix("%")
            yield Difference("signature", name or str(number), _type(one), _type(other))


def _arguments(text: str) -> list[str]:
    """``%x: !tt.ptr<f32> {tt.divisibility = 16 : i32}`` and so on, without locations."""
    match = _FUNCTION.search(_LOCATION.sub("", text))
    inner = (match[1] or match[2] or "") if match else ""
    return [part.strip() for part in re.split(r",\s*(?=%)", inner) if part.strip()]


def _type(argument: str | None) -> str | None:
    return None if argument is None else argument.partition(":")[2].strip()


def _code(ending: str, a: str, b: str) -> Iterator[Difference]:
    """The first line that differs; one is enough, since the names of all values after it differ as well."""
    for one, other in zip_longest(_body(a), _body(b)):
        if one != other:
            yield Difference("source", ending.removeprefix("."), one, other)
            return


def _body(text: str) -> list[str]:
    lines = (line.strip() for line in _LOCATION.sub("", text).splitlines())
    return [line for line in lines if line and not line.startswith(("#loc", "tt.func public"))]


def _locations(a: str, b: str) -> Iterator[Difference]:
    for one, other in zip(_LINE.findall(a), _LINE.findall(b), strict=False):
        if one[1] != other[1]:  # the file is not in the key, the line is
            yield Difference("location", "line", ":".join(one), ":".join(other))
            return


def _assembler(a: str, b: str) -> Iterator[Difference]:
    """Another ptxas: the same PTX, but for the version that Triton lets its ptxas choose, and another binary."""
    one, other = _assembled(a), _assembled(b)
    if one is not None and other is not None and one != other and one[0] == other[0]:
        yield Difference("assembler", "ptxas", one[1], other[1])


def _assembled(directory: str) -> tuple[str, str] | None:
    """The PTX without its version; that version, and which binary became of it."""
    text, group = _form(directory, ".ptx"), group_in(directory)
    if text is None or group is None:
        return None
    version = re.search(r"^\.version (\S+)", text, re.MULTILINE)
    try:
        sha256, _ = digest(f"{directory}/{group.removesuffix('.json')}.cubin")
    except OSError:
        return None
    return text.replace(
        version[0], ""
    ) if version else text, f"PTX {version[1] if version else '?'}, {sha256[:12]}"
