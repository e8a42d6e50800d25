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
_ATTRIBUTE = struct.Struct("<BBH")
_PAIR = struct.Struct("<II")
_SYMBOL_NAME, _SYMBOL_BYTES = struct.Struct("<I"), 24
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
    """Where its name begins in the table of names."""
    link: int
    """The number of the section that it refers to."""
    data: bytes


def resources(path: str) -> dict[str, Resources] | None:
    """What each kernel (by its symbol) needs; None for a file that cannot be read, was cut, or is no cubin."""
    try:
        return _resources(reading.read(path))
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _resources(data: bytes) -> dict[str, Resources] | None:
    sections, names = _sections(data)
    infos = [section for section in sections if _name(names, section.name) == ".nv.info"]
    if not infos:
        return None
    info = infos[0]
    symbols = sections[info.link]
    strings = sections[symbols.link].data
    registers: dict[int, int] = {}
    stacks: dict[int, int] = {}
    for kind, index, count in _attributes(info.data):
        if kind == _REGISTERS:
            registers[index] = count
        elif kind == _STACK:
            stacks[index] = count
    found = {}
    for index, count in registers.items():
        (offset,) = _SYMBOL_NAME.unpack_from(symbols.data, _SYMBOL_BYTES * index)
        found[_name(strings, offset)] = Resources(count, stacks.get(index, 0))
    return found


def _sections(data: bytes) -> tuple[list[_Section], bytes]:
    """Every section, and the table of their names."""
    ident, *_, programs, start, _, _, program_size, program_count, size, count, names = (
        _HEADER.unpack_from(data)
    )
    tables = max(programs + program_size * program_count, start + size * count)
    if ident[:5] != b"\x7fELF\x02" or tables > len(data):
        raise ValueError("not a whole 64-bit ELF file")
    found = [_section(data, start + number * size) for number in range(count)]
    return found, found[names].data


def _section(data: bytes, at: int) -> _Section:
    """The section whose header is at this offset."""
    name, kind, _, _, offset, length, link, _, _, _ = _SECTION.unpack_from(data, at)
    if kind == _NOBITS:
        return _Section(name, link, b"")
    if offset + length > len(data):
        raise ValueError("cut within a section")
    return _Section(name, link, data[offset : offset + length])


def _attributes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, symbol index and count of each attribute that has these."""
    at = 0
    while at < len(data):
        form, kind, size = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        if form != _SIZED:
            continue  # its value is in the place of the size
        if size == _PAIR.size:
            index, count = _PAIR.unpack_from(data, at)
            yield kind, index, count
        at += size


def _name(table: bytes, offset: int) -> str:
    end = table.index(b"\0", offset)
    return table[offset:end].decode()
