"""Whether a file ends where its own format says, for formats that JIT compilers write. Nothing in it is run."""

from __future__ import annotations

import pickletools
import zlib
from typing import BinaryIO

_PART_BYTES = 2**20
_MOST_RATIO = 2**32
"""Bytes: what unpacks to more is taken for whole. A bomb would keep a command busy for hours."""


def is_whole_pickles(file: BinaryIO, count: int) -> bool:
    """Whether an open file is so many pickles one after another, each to its end; they are parsed, and not executed."""
    try:
        for _ in range(count):
            for _ in pickletools.genops(file):
                pass
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError, UnicodeError):
        return False
    return not file.read(1)


def is_whole_ptx(data: bytes) -> bool:
    """Whether text has what each PTX has, a version and a target, and ends with the end of something (PTX ISA, 5)."""
    text = data.rstrip(b"\0 \t\r\n")
    return b".version" in text and b".target" in text and text.endswith(b"}")


def is_whole_zlib(file: BinaryIO) -> bool:
    """Whether an open file is one stream of zlib's to its end, whose checksum is right (RFC 1950)."""
    stream = zlib.decompressobj()
    unpacked = 0
    try:
        while not stream.eof and unpacked < _MOST_RATIO:
            packed = stream.unconsumed_tail or file.read(_PART_BYTES)
            if not packed:
                return False
            unpacked += len(stream.decompress(packed, _PART_BYTES))
    except zlib.error:
        return False
    return True


def is_whole_zstd(file: BinaryIO) -> bool:
    """Whether an open file is frames of zstd's, each to its last block (RFC 8878, 3.1.1); nothing is unpacked."""
    is_any = False
    while head := file.read(5):
        if len(head) < 5 or head[:4] != b"\x28\xb5\x2f\xfd":
            return False
        if not _skip_frame(file, head[4]):
            return False
        is_any = True
    return is_any


def _skip_frame(file: BinaryIO, descriptor: int) -> bool:
    """Skip the rest of a frame, whose descriptor was read; whether all of it is there."""
    is_single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    size = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    if not _skip(file, dictionary + size + (0 if is_single else 1)):
        return False
    is_last = False
    while not is_last:
        block = file.read(3)
        if len(block) < 3:
            return False
        number = int.from_bytes(block, "little")
        is_last = bool(number & 1)
        is_one_byte = (number >> 1) & 3 == 1  # repeated
        if not _skip(file, 1 if is_one_byte else number >> 3):
            return False
    has_checksum = bool(descriptor & 4)
    return _skip(file, 4 if has_checksum else 0)


def _skip(file: BinaryIO, count: int) -> bool:
    """Read so many bytes; whether there are as many."""
    return len(file.read(count)) == count
