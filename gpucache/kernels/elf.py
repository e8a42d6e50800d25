"""Whether a compiled binary is as long as its own header says."""

from __future__ import annotations

import os
import struct

from gpucache.disk.door import opener, read_some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.reading import Opener


ELF_64 = b"\x7fELF\x02"
"""How a 64-bit ELF object begins."""
HEAD_BYTES = 64
"""How much of the beginning of a file `is_whole` looks at: the header of a 64-bit ELF object."""

_OFFSETS = struct.Struct("<QQ")
"""Where the tables of programs and of sections begin."""
_COUNTS = struct.Struct("<HHHH")
"""The size of an item and the number of items of each of the two tables."""


def is_whole_elf(path: str, opener: Opener = opener) -> bool:
    """Whether a file is not empty and, if it is a 64-bit ELF object, as long as its header tables say.

    A cubin or library that was cut would otherwise be taken for good: Triton checks that it exists, no more.
    """
    with open(path, "rb", opener=opener) as file:
        head = read_some(file, HEAD_BYTES)
        size = file.seek(0, os.SEEK_END)
    return is_whole(head, size)


def is_whole(head: bytes, size: int) -> bool:
    """Whether a file of this size that begins with ``head`` is whole, by the same measure as `is_whole_elf`."""
    if not head.startswith(ELF_64) or len(head) < HEAD_BYTES:
        # No header to go by, but after a power cut a file may be zeros of the right size.
        is_other_elf = head.startswith(b"\x7fELF")
        is_empty = not head.strip(b"\0")
        return not is_other_elf and not is_empty
    programs, sections = _OFFSETS.unpack_from(head, 0x20)
    program_size, program_count, section_size, section_count = _COUNTS.unpack_from(head, 0x36)
    programs_end: int = programs + program_size * program_count
    sections_end: int = sections + section_size * section_count
    return max(programs_end, sections_end) <= size
