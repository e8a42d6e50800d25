"""What a cubin says of its kernels: registers and stack per thread.

A cubin is a 64-bit ELF file. Its section ``.nv.info`` is a list of attributes: one byte of format, one of kind, two of
value or size, then the payload, here the kernel's index in the symbol table and a count. ``EIATTR_REGCOUNT`` (0x2f)
stands there for kernels only, not for the functions they call; ``EIATTR_MIN_STACK_SIZE`` is 0x12. NVIDIA documents
neither, `cuobjdump -elf` names them. Both equal what `ptxas -v` and `cuobjdump -res-usage` say, for sm_80, sm_90,
sm_90a, sm_100, sm_100a and sm_120 with each ptxas of Triton 3.2.0, 3.6.0 and 3.9.0 that knows them (12.4, 12.8, 12.9
and 13.4). The top byte of a text section's ``sh_info``, often said to be the count, is so for sm_80, and 0 from sm_90.
"""

from __future__ import annotations

import struct

from gpucache.disk import reading
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOBITS = 8
_SIZED = 4
"""The format of an attribute whose second half-word is the size of its payload."""
_REGISTERS, _STACK = 0x2F, 0x12


class Resources(Value):
    """What a thread of one kernel needs."""

    registers: int
    stack_bytes: int
    """Stack frame with spilled registers and what called functions need; 0 where nothing was spilled."""


class _Section(Value):
    name: int
    kind: int
    link: int
    data: bytes


def resources(path: str) -> dict[str, Resources] | None:
    """What each kernel (by its symbol) needs; None for a file that cannot be read, was cut, or is no cubin."""
    try:
        return _resources(reading.read(path))
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _resources(data: bytes) -> dict[str, Resources] | None:
    sections, names = _sections(data)
    info = next((section for section in sections if _name(names, section.name) == ".nv.info"), None)
    if info is None:
        return None
    symbols = sections[info.link]
    strings = sections[symbols.link].data
    stacks = {index: count for kind, index, count in _attributes(info.data) if kind == _STACK}
    return {
        _name(strings, struct.unpack_from("<I", symbols.data, 24 * index)[0]): Resources(
            count, stacks.get(index, 0)
        )
        for kind, index, count in _attributes(info.data)
        if kind == _REGISTERS
    }


def _sections(data: bytes) -> tuple[list[_Section], bytes]:
    """Every section, and the table of their names."""
    ident, *_, programs, start, _, _, program_size, program_count, size, count, names = (
        _HEADER.unpack_from(data)
    )
    tables = max(programs + program_size * program_count, start + size * count)
    if ident[:5] != b"\x7fELF\x02" or tables > len(data):
        raise ValueError("not a whole 64-bit ELF file")
    found = []
    for number in range(count):
        name, kind, _, _, offset, length, link, _, _, _ = _SECTION.unpack_from(
            data, start + number * size
        )
        if kind != _NOBITS and offset + length > len(data):
            raise ValueError("cut within a section")
        found.append(
            _Section(name, kind, link, b"" if kind == _NOBITS else data[offset : offset + length])
        )
    return found, found[names].data


def _attributes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, symbol index and count of each attribute that has these."""
    at = 0
    while at < len(data):
        form, kind, size = struct.unpack_from("<BBH", data, at)
        if form == _SIZED and size == 8:
            yield kind, *struct.unpack_from("<II", data, at + 4)
        at += 4 + (size if form == _SIZED else 0)


def _name(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
