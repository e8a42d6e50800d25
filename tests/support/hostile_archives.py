"""Hostile packs whose flaw is in a header or in the order of the members."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpucache.archive import ustar
from gpucache.archive.members import SIGNATURES, STATEMENT
from gpucache.archive.signature import SigningKey
from support.hostile_parts import Case, Parts, edited, member, zst

FIELDS = {
    "mode": (100, b"0004755\0"),
    "user": (108, b"0001000\0"),
    "group": (116, b"0001000\0"),
    "time": (136, b"14000000000\0"),
    "link": (157, b"/etc/passwd"),
    "user's name": (265, b"root"),
    "group's name": (297, b"root"),
    "major number": (329, b"0000010\0"),
    "minor number": (337, b"0000010\0"),
    "rest of the block": (500, b"x"),
    "mode with blanks": (100, b" 00644 \0"),
}
TYPES = {
    "a hard link": b"1",
    "a symbolic link": b"2",
    "a character device": b"3",
    "a block device": b"4",
    "a directory": b"5",
    "a FIFO": b"6",
    "a contiguous file": b"7",
    "a pax header": b"x",
    "a global pax header": b"g",
    "GNU's long name": b"L",
    "GNU's long link": b"K",
    "GNU's sparse file": b"S",
    "GNU's directory listing": b"D",
    "the rest of a file of another volume": b"M",
    "a volume's name": b"V",
    "Solaris's pax header": b"X",
    "of type b'\\x00'": b"\0",
    "of type b'A'": b"A",
    "of type b'\\xff'": b"\xff",
}
SIZES = {
    "base 256": b"\x80" + bytes(10) + b"\x10",
    "base 256, negative": b"\xff" * 12,
    "base 256, exbibytes": b"\x80" + b"\x7f" * 11,
    "blanks": b"       1234\0",
    "a digit 8": b"00000000018\0",
    "a sign": b"-0000000001\0",
    "nothing": bytes(12),
    "no end": b"000000000017",
    "a letter": b"0000000000x\0",
}


def cases(signing: SigningKey) -> Iterator[Case]:
    yield from headers(signing)
    yield from names(signing)
    yield from orders(signing)
    yield from contents(signing)


def headers(signing: SigningKey) -> Iterator[Case]:
    parts = Parts(signing)
    name, content = parts.files[0]
    good = ustar.header(name, len(content))
    rest = b"".join(member(*file) for file in parts.files)[512:] + ustar.END

    def with_header(block: bytes) -> Callable[[], bytes]:
        return lambda: zst(parts.beginning() + block + rest)

    for field, (at, value) in FIELDS.items():
        block = edited(good, at, value)
        yield Case(f"another {field}", "header-field", "says more than", with_header(block))
        unsummed = good[:at] + value + good[at + len(value) :]
        yield Case(f"another {field}, not summed", "checksum", "checksum", with_header(unsummed))
    for what, kind in TYPES.items():
        yield Case(f"type: {what}", "member-type", what, with_header(edited(good, 156, kind)))
    for what, size in SIZES.items():
        block = edited(good, 124, size)
        yield Case(f"size: {what}", "member-size", "no octal number", with_header(block))
    gnu = edited(good, 257, b"ustar  \0")
    yield Case("GNU's magic", "header", "something else", with_header(gnu))
    yield Case(
        "no magic, as before 1988", "header", "else", with_header(edited(good, 257, bytes(8)))
    )
    yield Case("random bytes for a header", "header", "else", with_header(bytes(range(256)) * 2))
    signed = good[:148] + b"-00001\0 " + good[156:]
    yield Case("a negative checksum", "checksum", "checksum", with_header(signed))
    other = good[:148] + good[148:154] + b" \0" + good[156:]
    yield Case("a checksum of another tar", "checksum", "checksum", with_header(other))


def names(signing: SigningKey) -> Iterator[Case]:
    """Names are written by hand: `ustar.header` has none of these."""
    parts = Parts(signing)
    name, content = parts.files[0]
    directory = name.partition("/")[0]
    good = ustar.header(name, len(content))
    rest = b"".join(member(*file) for file in parts.files)[512:] + ustar.END

    def named(text: bytes, prefix: bytes = b"") -> Callable[[], bytes]:
        block = edited(good, 0, text.ljust(100, b"\0"))
        block = edited(block, 345, prefix.ljust(155, b"\0"))
        return lambda: zst(parts.beginning() + block + rest)

    outside = "where"
    yield Case("an absolute member", "absolute-name", "'/etc/passwd'", named(b"/etc/passwd"))
    yield Case("an absolute prefix", "absolute-name", "'/etc/", named(b"passwd", b"/etc"))
    yield Case("two slashes", "absolute-name", "'//x'", named(b"//x"))
    yield Case("a member that leads out", "parent-name", "'../x'", named(b"../x"))
    yield Case("a prefix that leads out", "parent-name", "'../../x'", named(b"x", b"../.."))
    yield Case("out in the middle", "parent-name", "leads out", named(f"{directory}/../x".encode()))
    yield Case("out in the end", "parent-name", "leads out", named(f"{directory}/..".encode()))
    yield Case("two dots alone", "parent-name", "'..'", named(b".."))
    yield Case("a dot before", "member-name", outside, named(f"./{name}".encode()))
    yield Case(
        "two slashes within", "member-name", outside, named(name.replace("/", "//").encode())
    )
    yield Case("another directory", "member-name", outside, named(b"other/add.cubin"))
    yield Case("no directory", "member-name", outside, named(b"add.cubin"))
    yield Case("a name of Windows", "member-name", outside, named(b"C:\\x"))
    yield Case("no name", "member-name", "there is ''", named(b""))
    yield Case("a prefix alone", "header-field", "says more", named(b"", directory.encode()))
    yield Case(
        "a name after a NUL", "member-name", "none of gpucache's", named(name.encode() + b"\0x")
    )
    yield Case("an escape in a name", "member-name", "\\x1b[2J", named(b"a/\x1b[2J"))
    yield Case("a name that is not ASCII", "member-name", "none", named("a/ä".encode()))
    yield Case("a name split elsewhere", "header-field", "more", named(*split(name)))
    yield Case("a name with a slash at its end", "member-name", outside, named(f"{name}/".encode()))


def split(name: str) -> tuple[bytes, bytes]:
    """The end and the beginning of a name that a header would hold whole."""
    directory, _, rest = name.partition("/")
    return rest.encode(), directory.encode()


def orders(signing: SigningKey) -> Iterator[Case]:
    parts = Parts(signing)
    statement, files = parts.statement, [member(*file) for file in parts.files]
    signatures = parts.right_signatures()
    first = member(STATEMENT, statement)
    second = member(SIGNATURES, signatures)
    end = ustar.END
    whole = b"".join(files)
    file_name = parts.files[0][0]
    evil = member("evil", b"x")

    def tar(*blocks: bytes) -> Callable[[], bytes]:
        return lambda: zst(b"".join(blocks))

    yield Case("no member", "end", "ends where", tar(end))
    yield Case("no statement", "no-statement", "its first member", tar(whole, end))
    yield Case("signatures first", "no-statement", SIGNATURES, tar(second, first, whole, end))
    yield Case("the statement twice", "unsigned", "nobody", tar(first, first, second, whole, end))
    again = "is there twice"
    yield Case(
        "the signatures twice", "repeated-member", again, tar(first, second, second, whole, end)
    )
    yield Case(
        "the statement again, last", "repeated-member", again, tar(first, second, whole, first, end)
    )
    late = tar(first, files[0], second, *files[1:], end)
    yield Case("signatures after a file", "unsigned", "nobody", late)
    yield Case(
        "the first file twice", "repeated-member", again, tar(first, second, files[0], whole, end)
    )
    yield Case(
        "the first file again, last",
        "repeated-member",
        again,
        tar(first, second, whole, files[0], end),
    )
    yield Case(
        "the last file twice", "repeated-member", again, tar(first, second, whole, files[-1], end)
    )
    yield Case(
        "a member more, last", "trailing-member", "'evil'", tar(first, second, whole, evil, end)
    )
    yield Case(
        "a member more, first", "member-name", "'evil'", tar(first, second, evil, whole, end)
    )
    yield Case("no files", "missing-member", f"'{file_name}' is missing", tar(first, second, end))
    yield Case(
        "the first file missing", "member-name", "where", tar(first, second, *files[1:], end)
    )
    yield Case(
        "the last file missing", "missing-member", "missing", tar(first, second, *files[:-1], end)
    )
    yield Case("two files swapped", "member-name", "where", tar(first, second, *files[::-1], end))
    yield Case(
        "an empty block within", "end", "an empty block", tar(first, second, bytes(512), whole, end)
    )
    early = tar(first, second, *files[:2], end, *files[2:], end)
    yield Case("an end within", "missing-member", "is missing", early)
    yield Case("no end", "end", "no end", tar(first, second, whole))
    yield Case("half an end", "end", "no end", tar(first, second, whole, bytes(512)))
    yield Case("half a block for an end", "end", "no end", tar(first, second, whole, bytes(100)))
    for blocks in (1, 18):
        more = bytes(512 * blocks)
        yield Case(
            f"{blocks} empty blocks after",
            "trailing-bytes",
            "archive",
            tar(first, second, whole, end, more),
        )
    yield Case(
        "a byte after the end", "trailing-bytes", "archive", tar(first, second, whole, end, b"x")
    )
    again_all = tar(first, second, whole, end, first, second, whole, end)
    yield Case("an archive after the end", "trailing-bytes", "archive", again_all)


def contents(signing: SigningKey) -> Iterator[Case]:
    parts = Parts(signing)
    beginning, (name, content) = parts.beginning(), parts.files[0]
    others = b"".join(member(*file) for file in parts.files[1:]) + ustar.END

    def first(block: bytes) -> Callable[[], bytes]:
        return lambda: zst(beginning + block + others)

    for at in (0, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[at] ^= 1
        yield Case(
            f"bit flipped in byte {at}", "file-digest", name, first(member(name, bytes(flipped)))
        )
    yield Case("a file cut", "member-size", "in the statement", first(member(name, content[:-1])))
    yield Case(
        "a file longer", "member-size", "in the statement", first(member(name, content + b"x"))
    )
    yield Case("an empty file", "member-size", "has 0 bytes", first(member(name)))
    zeros = member(name, content)[:-1] + b"x"
    yield Case("a byte in the padding", "padding", "not zeros", first(zeros))
    unpadded = beginning + member(name, content)[: 512 + len(content)]
    yield Case("no padding", "padding", "not zeros", lambda: zst(unpadded))
    yield Case("ends within a file", "end", "middle of a member", lambda: zst(unpadded[:-10]))
    digests = Parts(signing).edit(lambda _, entries: _swap_digests(entries[0]))
    yield Case("two digests swapped", "file-digest", name, lambda: zst(digests.tar()))
    keys = Parts(signing).edit(lambda _, entries: _swap_keys(entries))
    yield Case("two keys swapped", "member-name", "where", lambda: zst(keys.tar()))


def _swap_digests(entry: dict) -> None:
    files = entry["files"]
    files[0][2], files[1][2] = files[1][2], files[0][2]


def _swap_keys(entries: list) -> None:
    entries[0]["key"], entries[1]["key"] = entries[1]["key"], entries[0]["key"]
