"""Sixteen digits for words that are too many for the name of a file.

They find a file again and protect nothing. `hashlib` would take longer to import than all else before a program starts.
"""

from __future__ import annotations

import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def short_digest(words: Iterable[str]) -> str:
    """Sixteen hexadecimal digits of words, in which none may contain a null character."""
    data = "\0".join(words).encode("utf-8", "surrogateescape")
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}"
