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
from typing import NamedTuple

from gpucache.disk import reading
from gpucache.kernels.elf import ELF_64, HEAD_BYTES, is_whole
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


_TABLE = struct.Struct("<Q")
"""Where the table of sections begins: 0x28 bytes into the file."""
_SIZES = struct.Struct("<HHH")
"""The size and number of the table's items, and the section with all names: 0x3a bytes into the file."""
_SECTION = struct.Struct("<II16xQQI20x")
"""An item of the table: the section's name and type, where it begins, how long it is, the section it refers to."""
_ATTRIBUTE = struct.Struct("<BBH")
_PAIR = struct.Struct("<II")
_SYMBOL_NAME, _SYMBOL_BYTES = struct.Struct("<I"), 24
_NOBITS = 8
_INFO = b".nv.info\0"
_SIZED = 4
"""The format of an attribute whose second half-word is the size of its payload."""
_REGISTERS, _STACK = 0x2F, 0x12


class Resources(Value):
    """What a thread of one kernel needs."""

    registers: int
    stack_bytes: int
    """Stack frame with spilled registers and what called functions need; 0 where nothing was spilled."""


class _Section(NamedTuple):
    name: int
    """Where its name begins in the table of names."""
    kind: int
    offset: int
    length: int
    link: int
    """The number of the section that it refers to."""


def resources(path: str) -> dict[str, Resources] | None:
    """What each kernel in a cubin needs, by its symbol; None for a file that is unreadable, cut, or no cubin."""
    try:
        return _resources(reading.read(path))
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _resources(data: bytes) -> dict[str, Resources] | None:
    sections, names = _sections(data)
    named = (section for section in sections if names.startswith(_INFO, section.name))
    info = next(named, None)
    if info is None:
        return None
    symbols = sections[info.link]
    table = _content(data, symbols)
    strings = _content(data, sections[symbols.link])
    registers: dict[int, int] = {}
    stacks: dict[int, int] = {}
    for kind, index, count in _attributes(_content(data, info)):
        if kind == _REGISTERS:
            registers[index] = count
        elif kind == _STACK:
            stacks[index] = count
    found = {}
    for index, count in registers.items():
        at = _SYMBOL_BYTES * index
        (offset,) = _SYMBOL_NAME.unpack_from(table, at)
        kernel = _name(strings, offset)
        found[kernel] = Resources(count, stacks.get(index, 0))
    return found


def _sections(data: bytes) -> tuple[list[_Section], bytes]:
    """Every section, and the table of their names."""
    head = data[:HEAD_BYTES]
    if not head.startswith(ELF_64) or not is_whole(head, len(data)):
        raise ValueError("not a whole 64-bit ELF file")
    (start,) = _TABLE.unpack_from(data, 0x28)
    size, count, names = _SIZES.unpack_from(data, 0x3A)
    if size != _SECTION.size:
        raise ValueError("a table of other items")
    table = data[start : start + size * count]
    found = list(map(_Section._make, _SECTION.iter_unpack(table)))
    return found, _content(data, found[names])


def _content(data: bytes, section: _Section) -> bytes:
    """The bytes of a section."""
    if section.kind == _NOBITS:
        return b""
    end = section.offset + section.length
    if end > len(data):
        raise ValueError("cut within a section")
    return data[section.offset : end]


def _attributes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the attributes that have a symbol's index and a count; of each the kind, the index and the count."""
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
    """The text at this offset of a table of names, which ends at the next zero byte."""
    end = table.index(b"\0", offset)
    return table[offset:end].decode()
