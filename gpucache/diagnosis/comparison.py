"""`compare`: two kernels side by side, and `text_difference`: one of their forms as a unified diff. Reads only."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from gpucache.diagnosis.disassembly import (
    disassemble,
    disassembler,
    instruction_count,
    without_addresses,
)
from gpucache.errors import GpuCacheError
from gpucache.kernels.description import Description, describe
from gpucache.kernels.ingredients import Ingredients, ingredients_in
from gpucache.kernels.mlir import LOCATION
from gpucache.report.artefacts import DISASSEMBLED, artefact, artefacts
from gpucache.report.entries import Entry

Part = Literal["kernel", "constant", "type", "option", "environment", "needs", "bytes"]


class Row(NamedTuple):
    """One thing of two kernels."""

    part: Part
    """``needs`` are registers, memory and instructions; ``bytes`` are those of the entry's files."""
    name: str
    a: str | int | None
    b: str | int | None

    @property
    def differs(self) -> bool:
        """Whether the kernels are two in this."""
        return self.a != self.b


def compare(a: Entry, b: Entry, environ: Mapping[str, str]) -> tuple[Row, ...]:
    """All that is known of two kernels, side by side; None for what one has not, or does not tell.

    Instructions are counted where a disassembler is found (`disassembler`).

    Raises:
        GpuCacheError: one of them is no kernel.
    """
    one, other = _Kernel(a), _Kernel(b)
    rows = [*_identity(one, other)]
    rows += _side_by_side("constant", one.made.constants, other.made.constants)
    rows += _side_by_side("type", one.made.types, other.made.types)
    rows += _side_by_side("option", one.options, other.options)
    rows += _side_by_side(
        "environment", one.made.metadata.environment, other.made.metadata.environment
    )
    rows += _needs(one, other, environ)
    rows += _sizes(a, b)
    return tuple(rows)


class _Kernel:
    """What is read of one of the two."""

    def __init__(self, entry: Entry) -> None:
        directory = entry.copies[0].path
        made = ingredients_in(directory, entry.kernel)
        described = describe(directory, entry.kernel)
        if entry.kind != "kernel" or made is None or described is None:
            problem = f"{entry.kernel} {entry.key} is no kernel, or its metadata cannot be read"
            raise GpuCacheError(problem, "name the key of a kernel; `gpucache ls` shows the kinds")
        self.entry = entry
        self.made: Ingredients = made
        self.described: Description = described

    @property
    def options(self) -> dict[str, str]:
        """The options as JSON, but for the paths of libraries."""
        said = self.made.metadata.options
        return {name: json.dumps(said[name]) for name in said if name != "extern_libs"}

    @property
    def place(self) -> str | None:
        """Where the function stands."""
        return None if self.made.line is None else f"{self.made.file}:{self.made.line}"

    @property
    def source(self) -> str | None:
        """The beginning of the digest of the function's source."""
        return self.made.cache_key[:12] or None


def _identity(a: _Kernel, b: _Kernel) -> Iterator[Row]:
    yield Row("kernel", "name", a.entry.kernel, b.entry.kernel)
    yield Row("kernel", "arch", a.entry.arch, b.entry.arch)
    yield Row("kernel", "triton", a.made.triton_version, b.made.triton_version)
    yield Row("kernel", "function", a.place, b.place)
    yield Row("kernel", "source digest", a.source, b.source)


def _side_by_side(part: Part, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Row]:
    for name in dict.fromkeys((*a, *b)):
        yield Row(part, name, a.get(name), b.get(name))


def _needs(a: _Kernel, b: _Kernel, environ: Mapping[str, str]) -> Iterator[Row]:
    one, other = a.described, b.described
    yield Row("needs", "registers", one.registers, other.registers)
    yield Row("needs", "spills_bytes", one.spills, other.spills)
    yield Row("needs", "shared_bytes", one.shared_bytes, other.shared_bytes)
    if disassembler(environ) is not None:
        counts = (_instructions(a.entry, environ), _instructions(b.entry, environ))
        yield Row("needs", "instructions", *counts)


def _instructions(entry: Entry, environ: Mapping[str, str]) -> int | None:
    try:
        return instruction_count(disassemble(artefact(entry, "cubin"), environ))
    except (GpuCacheError, OSError):
        return None  # it has no cubin, or one that this disassembler does not know


def _sizes(a: Entry, b: Entry) -> Iterator[Row]:
    one, other = _bytes(a), _bytes(b)
    for form in dict.fromkeys((*one, *other)):
        yield Row("bytes", form, one.get(form), other.get(form))


def _bytes(entry: Entry) -> dict[str, int]:
    sizes = {file.name: file.size_bytes for file in entry.files}
    found = {}
    for form, path in artefacts(entry).items():
        if form != "recipe":
            found[form] = sizes[path.rpartition("/")[2]]
    return found


# ---- one form


def text_difference(
    a: Entry, b: Entry, form: str, environ: Mapping[str, str], *, raw: bool = False
) -> list[str]:
    """A unified diff of one form of two entries, a line each; empty where they are the same.

    Without ``raw``, what only tells where the code stands is left out: locations, line numbers, addresses.

    Raises:
        NoArtefactError: one of them has no such form.
        GpuCacheError: the form is no text, or cannot be disassembled.
    """
    one = _lines(a, form, environ, raw)
    other = _lines(b, form, environ, raw)
    return list(difflib.unified_diff(one, other, _label(a, form), _label(b, form), lineterm=""))


def _label(entry: Entry, form: str) -> str:
    return f"{entry.key[:12]}/{entry.kernel}.{form}"


def _lines(entry: Entry, form: str, environ: Mapping[str, str], raw: bool) -> Sequence[str]:
    if form == DISASSEMBLED:
        text = disassemble(artefact(entry, "cubin"), environ)
    else:
        text = _decoded(artefact(entry, form), entry, form)
    bare = _BARE.get(form)
    if bare is None or raw:
        return text.splitlines()
    return [line.rstrip() for line in bare(text).splitlines()]


def _decoded(data: bytes, entry: Entry, form: str) -> str:
    if b"\0" in data:
        hint = "compare sass, which is the cubin disassembled" if form == "cubin" else ""
        raise GpuCacheError(f"{entry.kernel}.{form} is no text", hint)
    return data.decode(errors="replace")


def _without_locations(text: str) -> str:
    lines = [LOCATION.sub("", line) for line in text.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("#loc"))


_DEBUG_OF_LLVM = re.compile(r", !dbg !\d+|, !tbaa !\d+")
_OF_PLACE_IN_PTX = re.compile(r"\s*(?:\.loc|\.file)\s|\s*\$L__(?:tmp|func_begin|func_end)\d+:")
_DEBUG_SECTIONS = re.compile(r"^\s*\.section\s+\.debug", re.MULTILINE)


def _without_debug(text: str) -> str:
    """LLVM's text without what tells lines."""
    lines = _DEBUG_OF_LLVM.sub("", text).splitlines()
    return "\n".join(line for line in lines if not line.startswith("!"))


def _without_lines(text: str) -> str:
    """PTX without lines of Python, and without the sections of a debugger at its end."""
    code = _DEBUG_SECTIONS.split(text, maxsplit=1)[0]
    return "\n".join(line for line in code.splitlines() if not _OF_PLACE_IN_PTX.match(line))


def _spread(text: str) -> str:
    """JSON, a field on each line."""
    try:
        return json.dumps(json.loads(text), indent=1)
    except (ValueError, RecursionError):
        return text


_BARE: Mapping[str, Callable[[str], str]] = {
    "source": _without_locations,
    "ttir": _without_locations,
    "ttgir": _without_locations,
    "llir": _without_debug,
    "ptx": _without_lines,
    DISASSEMBLED: without_addresses,
    "json": _spread,
    "recipe": _spread,
}
"""By form, what leaves out what only tells where the code stands."""
