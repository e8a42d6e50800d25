"""The headers of ustar, written and read by these few lines, and never by `tarfile`.

`tarfile` believes a header's sizes: 18 KB of a pax header of 600 MB keep Python 3.11's busy for ten minutes at 600 MB.
Here each header is wholly determined by a name and a size, and one that differs in any bit is refused.
POSIX.1-1988, as in `pax(1)`, "ustar Interchange Format"; the bytes are those of `tarfile.USTAR_FORMAT` with mode 0644
and all else 0 or empty.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gpucache.archive.errors import BadPack, quoted

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""What ends an archive."""
MOST_BYTES = 8**11 - 1
"""The largest file that a header can say."""
_MOST_NAME_BYTES = 100
_MOST_PREFIX_BYTES = 155

_MAGIC = b"ustar\x0000"
_OWNER = b"0000644\x000000000\x000000000\0"
"""Mode, user, group."""
_TIME = b"00000000000\0"
_LINK = b"0".ljust(1 + 100, b"\0")
"""Type, name of a link."""
_USER = _MAGIC.ljust(8 + 32 + 32 + 8 + 8, b"\0")
"""Names of user and group, device."""
_FILL = bytes(12)
_SUM_OF_REST = sum(_OWNER + _TIME + b" " * 8 + _LINK + _USER)
_SIZE = re.compile(rb"[0-7]{11}\0")
_CHECKSUM = re.compile(rb"[0-7]{6}\0 ")
_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"x": "a pax header",
    b"g": "a global pax header",
    b"L": "GNU's long name",
    b"K": "GNU's long link",
    b"S": "GNU's sparse file",
    b"D": "GNU's directory listing",
    b"M": "the rest of a file of another volume",
    b"V": "a volume's name",
    b"X": "Solaris's pax header",
}


class Member(NamedTuple):
    """What a header says."""

    name: str
    size_bytes: int


def fits(name: str) -> bool:
    """Whether a header can hold a name: ASCII that can be shown, and not too long."""
    return name.isascii() and name.isprintable() and _split(name) is not None


def header(name: str, size_bytes: int) -> bytes:
    """The header of a regular file.

    Raises:
        ValueError: a header cannot say that name or size.
    """
    split = _split(name) if fits(name) else None
    if split is None or not 0 <= size_bytes <= MOST_BYTES:
        raise ValueError(f"no ustar header has the name {name!r} and {size_bytes} bytes")
    prefix, rest = (part.encode() for part in split)
    size = b"%011o\0" % size_bytes
    # Of what differs from header to header; the checksum itself counts as blanks.
    checksum = _SUM_OF_REST + sum(rest) + sum(size) + sum(prefix)
    fields = (
        rest.ljust(_MOST_NAME_BYTES, b"\0"),
        _OWNER,
        size,
        _TIME,
        b"%06o\0 " % checksum,
        _LINK,
        _USER,
        prefix.ljust(_MOST_PREFIX_BYTES, b"\0"),
        _FILL,
    )
    return b"".join(fields)


def _split(name: str) -> tuple[str, str] | None:
    """The prefix and the rest of a name, of which the slash between them is left out; None if it does not fit."""
    if len(name) <= _MOST_NAME_BYTES:
        return "", name
    at = name.find("/", len(name) - _MOST_NAME_BYTES - 1)
    if 0 < at <= _MOST_PREFIX_BYTES and at < len(name) - 1:
        return name[:at], name[at + 1 :]
    return None


def padding(size_bytes: int) -> int:
    """How many zeros follow the content of a file of this size, up to the next header."""
    return -size_bytes % BLOCK_BYTES


def parsed(block: bytes) -> Member:
    """Read a header of 512 bytes.

    Raises:
        BadPack: it is no header, is damaged, is of anything but a regular file, or has a field that `header` would not
            write; the code says which.
    """
    member = _simple(block)
    if member is not None:
        return member
    if block == bytes(BLOCK_BYTES):
        raise BadPack("end", "the archive ends where a member is to begin")
    if block[257:265] != _MAGIC:
        raise BadPack("header", "where a header of ustar is to be there is something else")
    said = block[148:156]
    summed = sum(block) - sum(said) + 8 * ord(" ")
    if not _CHECKSUM.fullmatch(said) or int(said[:6], 8) != summed:
        raise BadPack("checksum", "a header has another checksum than it says")
    kind = block[156:157]
    if kind != b"0":
        what = _TYPES.get(kind, f"of type {kind!r}")
        raise BadPack("member-type", f"a member is {what}, and no regular file")
    size_text = block[124:136]
    if not _SIZE.fullmatch(size_text):
        raise BadPack("member-size", f"a header has the size {size_text!r}, and no octal number")
    member = Member(_name(block), int(size_text[:11], 8))
    if header(*member) != block:
        raise BadPack(
            "header-field", f"the header of {quoted(member.name)} says more than a name and a size"
        )
    return member


def _simple(block: bytes) -> Member | None:
    """What a header says that is nothing but what `header` writes of a plain name; None for any other."""
    if block[345] or not _SIZE.fullmatch(block, 124, 136):
        return None
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    if name.startswith("/") or ".." in name or not fits(name):
        return None
    member = Member(name, int(block[124:135], 8))
    return member if header(*member) == block else None


def _name(block: bytes) -> str:
    rest = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0")
    whole = rest if not prefix else prefix + b"/" + rest
    name = whole.decode("ascii", "replace")
    if name.startswith("/"):
        raise BadPack("absolute-name", f"a member has the absolute name {quoted(name)}")
    if ".." in name.split("/"):
        raise BadPack("parent-name", f"a member has the name {quoted(name)}, which leads out")
    if not fits(name):
        raise BadPack(
            "member-name", f"a member has the name {quoted(name)}, which is none of gpucache's"
        )
    return name
