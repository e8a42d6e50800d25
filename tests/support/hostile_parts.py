"""A sound pack in its parts, of which hostile packs are put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from gpucache.archive import ustar
from gpucache.archive.members import SIGNATURES, STATEMENT, member_name
from gpucache.archive.signature import SigningKey, encoded_signatures
from gpucache.archive.statement import SIGNED_BEFORE, encoded
from support.packs import METADATA, Source


class Case(NamedTuple):
    """A hostile pack."""

    name: str
    code: str
    """The flaw that the reader tells."""
    fact: str
    """A part of what the reader says."""
    make: Callable[[], bytes]


class Parts:
    """A sound pack of two entries in its parts, which a case changes before they are put together."""

    def __init__(self, signing: SigningKey, source: Source | None = None) -> None:
        self.signing = signing
        self.source = source or Source().add(recipe=b"{}").add(
            {"sub.json": METADATA, "sub.cubin": b"\x7f"}
        )
        self.statement = encoded(self.source.statement)
        self.signatures: bytes | None = None
        """None for the right ones."""
        self.files = [
            (member_name(entry, file), self.source.content[entry.key, file.name])
            for entry in self.source.statement.entries
            for file in entry.members
        ]

    def edit(self, change: Callable[[dict, list], object]) -> Parts:
        """Change the head and the entries of the statement, which stays laid out as it was."""
        head, entries = self.said()
        change(head, entries)
        return self.say(head, entries)

    def said(self) -> tuple[dict, list]:
        """The head and the entries of the statement."""
        head = json.loads(self.statement)
        return head, head.pop("entries")

    def say(self, head: dict, entries: list) -> Parts:
        head_text = json.dumps({**head, "entries": []}, separators=(",", ":"))
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        self.statement = f"{head_text[:-2]}\n{lines}\n]}}\n".encode()
        return self

    def right_signatures(self) -> bytes:
        return encoded_signatures([self.signing.sign(SIGNED_BEFORE + self.statement)])

    def beginning(self) -> bytes:
        signatures = self.signatures
        if signatures is None:
            signatures = self.right_signatures()
        return member(STATEMENT, self.statement) + member(SIGNATURES, signatures)

    def tar(self) -> bytes:
        members = b"".join(member(name, content) for name, content in self.files)
        return self.beginning() + members + ustar.END


def member(name: str, content: bytes = b"") -> bytes:
    return ustar.header(name, len(content)) + content + bytes(ustar.padding(len(content)))


def zst(tar: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True, **options).compress(tar)


def edited(block: bytes, at: int, field: bytes) -> bytes:
    """A header with another field, and the checksum that it then has."""
    changed = block[:at] + field + block[at + len(field) :]
    blank = changed[:148] + b" " * 8 + changed[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]
