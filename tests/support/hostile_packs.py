"""Hostile packs: each with the flaw that a reader has to tell.

Where a flaw lies behind the signature, the pack is signed by the key that its reader trusts: who has stolen that key
must gain no more than what the statement says.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpucache.archive.signature import SigningKey
from support import (
    hostile_archives,
    hostile_signatures,
    hostile_sizes,
    hostile_statements,
    hostile_streams,
)
from support.hostile_parts import Case


def cases(signing: SigningKey, stranger: SigningKey) -> Iterator[Case]:
    """Some hundreds of small ones, for a reader that trusts ``signing`` alone; each name once."""
    yield from hostile_streams.cases(signing)
    yield from hostile_archives.cases(signing)
    yield from hostile_signatures.cases(signing, stranger)
    yield from hostile_statements.cases(signing)


def large(signing: SigningKey) -> Iterator[Case]:
    """Those that are to take a reader's memory or time; each takes some to be made."""
    yield from hostile_sizes.cases(signing)
