"""Hostile packs whose flaw is in the compressed stream."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator

import zstandard

from gpucache.archive.signature import SigningKey
from support.hostile_parts import Case, Parts, zst

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPED = b"\x50\x2a\x4d\x18" + struct.pack("<I", 8) + bytes(8)
"""A frame that every reader of zstd passes over."""


def frame(descriptor: int, rest: bytes) -> bytes:
    """A frame with this byte of what its header has, and the rest of it."""
    return MAGIC + bytes([descriptor]) + rest


def block(kind: int, size: int, content: bytes, last: bool = True) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3] + content


def windowed(log: int) -> bytes:
    """A frame whose window is 2 to this power, of one empty block."""
    return frame(0, bytes([(log - 10) << 3]) + block(0, 0, b""))


def cases(signing: SigningKey) -> Iterator[Case]:
    tar = Parts(signing).tar()
    good = zst(tar)
    for name, data in (
        ("nothing", b""),
        ("three bytes of the magic number", MAGIC[:3]),
        ("a text", b"<html>404 Not Found</html>\n"),
        ("gzip", gzip.compress(tar)),
        ("a bare tar", tar),
        ("zstd of the year 2015", b"\x27\xb5\x2f\xfd" + good[4:]),
        ("a frame to be skipped before", SKIPPED + good),
        ("a byte before", b"\0" + good),
    ):
        yield Case(name, "not-zstd", "does not begin as zstd does", lambda data=data: data)
    for name, data in (
        ("the magic number alone", MAGIC),
        ("half of the pack", good[: len(good) // 2]),
        ("all but the last byte", good[:-1]),
        ("a block that never comes", windowed(20)[:-3] + block(0, 0, b"", last=False)),
    ):
        yield Case(name, "truncated", "ends in the middle", lambda data=data: data)
    for log in (24, 27, 31, 41):
        yield Case(
            f"a window of 2^{log} bytes", "window", "more than 8 MiB", lambda log=log: windowed(log)
        )
    huge = frame(0xE0, struct.pack("<Q", 2**62) + block(0, 0, b""))
    yield Case("4 EiB in one segment", "window", "more than 8 MiB", lambda: huge)
    for name, data in (
        ("a dictionary that nobody has", frame(0x03, b"\x50" + bytes([1, 2, 3, 4]) + good[6:])),
        ("a reserved bit of the frame", good[:4] + bytes([good[4] | 0x08]) + good[5:]),
        ("a reserved kind of block", windowed(20)[:-3] + block(3, 5, b"abcde")),
        ("a block larger than any", windowed(20)[:-3] + block(0, 2**20, bytes(2**20))),
        ("another checksum", good[:-1] + bytes([good[-1] ^ 1])),
        ("another content size", zst(tar)[:4] + flipped_size(good)),
    ):
        yield Case(name, "corrupt", "compressed bytes are damaged", lambda data=data: data)
    for name, rest in (
        ("the pack twice", good),
        ("an empty frame after", zstandard.ZstdCompressor().compress(b"")),
        ("a frame begun after", MAGIC),
    ):
        yield Case(name, "second-frame", "second frame", lambda rest=rest: good + rest)
    for name, rest in (
        ("a zero byte after", b"\0"),
        ("three bytes of a frame after", MAGIC[:3]),
        ("a MiB after", b"x" * 2**20),
        ("a frame to be skipped after", SKIPPED),
    ):
        yield Case(
            name, "trailing-bytes", "follow the end of the frame", lambda rest=rest: good + rest
        )
    halves = zst(tar[:2048]) + zst(tar[2048:])
    yield Case("two frames with a half each", "end", "the archive", lambda: halves)
    yield Case("an empty frame", "end", "the archive has no end", lambda: zst(b""))


def flipped_size(good: bytes) -> bytes:
    """What follows the magic number, with another content size than the frame has."""
    return good[4:6] + bytes([good[6] ^ 1]) + good[7:]
