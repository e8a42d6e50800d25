"""Hostile packs that are to take a reader's memory or time."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator

import zstandard

from gpucache.archive import ustar
from gpucache.archive.members import SIGNATURES, STATEMENT
from gpucache.archive.signature import SigningKey, encoded_signatures
from gpucache.archive.statement import MOST_BYTES, SIGNED_BEFORE
from support.hostile_parts import Case, Parts, edited, member, zst
from support.hostile_streams import MAGIC, SKIPPED
from support.packs import digest, key

SHA = "0" * 64
MIB = 2**20
GIB = 2**30


def cases(signing: SigningKey) -> Iterator[Case]:
    yield from declared(signing)
    yield from bombs(signing)
    yield from counts(signing)


def declared(signing: SigningKey) -> Iterator[Case]:
    """Sizes that are said, of content that never comes."""
    most = ustar.header(STATEMENT, ustar.MOST_BYTES)
    yield Case("a statement of 8 GiB", "too-long", "67108864 are the most", lambda: zst(most))
    over = ustar.header(STATEMENT, MOST_BYTES + 1)
    yield Case("a statement of 64 MiB and a byte", "too-long", "67108864", lambda: zst(over))
    just = ustar.header(STATEMENT, MOST_BYTES)
    yield Case("a statement of 64 MiB that ends", "end", "middle", lambda: zst(just + b"{}"))
    parts = Parts(signing)
    name, _ = parts.files[0]
    huge = parts.beginning() + ustar.header(name, ustar.MOST_BYTES)
    yield Case("a file of 8 GiB", "member-size", "in the statement", lambda: zst(huge))
    signatures = member(STATEMENT, parts.statement) + ustar.header(SIGNATURES, ustar.MOST_BYTES)
    yield Case("signatures of 8 GiB", "signatures", "8589934591 bytes", lambda: zst(signatures))
    pax = edited(ustar.header("pax", 600 * MIB), 156, b"x")
    yield Case(
        "a pax header of 600 MiB", "member-type", "a pax header", lambda: repeated(pax, b" ", 600)
    )
    sparse = edited(ustar.header("sparse", ustar.MOST_BYTES), 156, b"S")
    yield Case("a sparse file of 8 GiB", "member-type", "GNU's sparse file", lambda: zst(sparse))


def repeated(head: bytes, letter: bytes, mib: int, tail: bytes = b"") -> bytes:
    """A pack that has these many MiB of one letter, made without holding them."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(
        out, closefd=False
    ) as stream:
        stream.write(head)
        for _ in range(mib):
            stream.write(letter * MIB)
        stream.write(tail)
    return out.getvalue()


def bombs(signing: SigningKey) -> Iterator[Case]:
    yield Case(
        "64 MiB of blanks", "too-long", "a line of more", lambda: said(signing, b" " * MOST_BYTES)
    )
    yield Case("64 MiB of brackets", "too-long", "a line", lambda: said(signing, b"[" * MOST_BYTES))
    yield Case(
        "64 MiB of empty lines", "format", "first line", lambda: said(signing, b"\n" * MOST_BYTES)
    )
    head = Parts(signing).statement.partition(b"\n")[0] + b"\n"

    def filled(line: bytes) -> bytes:
        count = (MOST_BYTES - len(head)) // len(line)
        return said(signing, head + line * count)

    yield Case("20 million empty objects", "value", "kind", lambda: filled(b"{},\n"))
    lists = b'{"kind":[' + b"[]," * 340_000 + b"[]]},\n"
    yield Case("lines of 340,000 lists", "value", "its kind is no text", lambda: filled(lists))
    objects = b'{"kind":[' + b"{}," * 340_000 + b"{}]},\n"
    yield Case("lines of 340,000 objects", "value", "its kind is no text", lambda: filled(objects))
    yield Case("64 GiB of zeros for a header", "end", "ends where", lambda: rle(2**19))
    parts = Parts(signing)
    whole = parts.tar()
    yield Case(
        "a GiB after the end", "trailing-bytes", "the archive", lambda: repeated(whole, b"x", 1024)
    )
    yield Case(
        "16 MiB of frames to be skipped",
        "trailing-bytes",
        "the frame",
        lambda: zst(whole) + SKIPPED * MIB,
    )
    yield Case(
        "a million empty blocks",
        "end",
        "no end",
        lambda: MAGIC + b"\0\x50" + b"\0\0\0" * MIB + b"\1\0\0",
    )

    def bomb() -> bytes:
        bombed = Parts(signing)
        bombed.edit(lambda _, entries: entries[0]["files"].__setitem__(0, ["add.cubin", GIB, SHA]))
        begun = bombed.beginning() + ustar.header(bombed.files[0][0], GIB)
        return repeated(begun, b"\0", 1024, ustar.END)

    yield Case("a file of a GiB of zeros", "file-digest", "another digest", bomb)


def rle(blocks: int) -> bytes:
    """A frame of so many blocks of 128 KiB of zeros, four bytes each."""
    block = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", 1)[:3]
    return MAGIC + b"\0\x50" + block * blocks + last


def said(signing: SigningKey, statement: bytes) -> bytes:
    """A pack of nothing but a signed statement."""
    signatures = encoded_signatures([signing.sign(SIGNED_BEFORE + statement)])
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(
        out, closefd=False
    ) as stream:
        stream.write(ustar.header(STATEMENT, len(statement)))
        stream.write(statement)
        stream.write(bytes(ustar.padding(len(statement))))
        stream.write(member(SIGNATURES, signatures) + ustar.END)
    return out.getvalue()


def counts(signing: SigningKey) -> Iterator[Case]:
    """Sound entries, so many that what Python makes of them would take hundreds of MB."""
    for name, files, letters, filler in (
        ("entries of one file", 1, "x", ""),
        ("entries of 8,000 files", 8000, "x", ""),
        ("entries of 4 files with long names", 4, "x" * 150, ""),
        ("names of four bytes a letter", 8, "\U0001d4b3" + "x" * 230, ""),
        ("kernels of four bytes a letter", 1, "x", "\U0001d4b3" + "x" * 990),
    ):
        fact = "more than 110 MB of memory"
        yield Case(
            f"64 MiB of {name}",
            "too-many",
            fact,
            lambda files=files, letters=letters, filler=filler: said(
                signing, counted(files, letters, filler)
            ),
        )
    fits = an_entry(4, "x" * 100, "")
    for_all = 105_000_000 // (len(fits) + 3200)
    most = b",\n".join(fits.replace(b"KEY", key(number).encode()) for number in range(for_all))
    yield Case(
        "as much as can be", "missing-member", "is missing", lambda: said(signing, laid_out(most))
    )


def counted(files: int, letters: str, kernel: str) -> bytes:
    """A sound statement of 64 MiB of entries with so many files each, whose names end in these letters."""
    template = an_entry(files, letters, kernel)
    count = (MOST_BYTES - 200) // (len(template) + 60)
    return laid_out(
        b",\n".join(template.replace(b"KEY", key(number).encode()) for number in range(count))
    )


def laid_out(lines: bytes) -> bytes:
    head = b'{"format":"gpucache pack","version":1,"name":"large","number":1,"entries":[\n'
    return head + lines + b"\n]}\n"


def an_entry(files: int, letters: str, kernel: str) -> bytes:
    """A line for an entry, without its key."""
    names = [f"{number}{letters}.json" for number in range(files)]
    entry = {
        "key": "KEY",
        "kind": "kernel",
        "arch": "sm_90",
        "kernel": kernel,
        "group": names[0],
        "target": "cuda:90",
        "triton_version": "3.9.0",
        "compile_s": 0.25,
        "tag": "",
        "files": [[name, 10**8, digest(name.encode())] for name in names],
    }
    return json.dumps(entry, separators=(",", ":")).encode()
