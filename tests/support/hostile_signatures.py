"""Hostile packs for which nobody vouches who is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gpucache.archive.signature import Signature, SigningKey, encoded_signatures
from gpucache.archive.statement import SIGNED_BEFORE
from gpucache.archive.ustar import END
from support.hostile_parts import Case, Parts, zst


def cases(signing: SigningKey, stranger: SigningKey) -> Iterator[Case]:
    yield from judged(signing, stranger)
    yield from malformed(signing)


def judged(signing: SigningKey, stranger: SigningKey) -> Iterator[Case]:
    parts = Parts(signing)
    right = signing.sign(SIGNED_BEFORE + parts.statement)
    theirs = stranger.sign(SIGNED_BEFORE + parts.statement)

    def signed(*signatures: Signature) -> bytes:
        changed = Parts(signing)
        changed.signatures = encoded_signatures(signatures)
        return zst(changed.tar())

    def flipped(at: int) -> Signature:
        value = bytearray(right.value)
        value[at] ^= 1
        return right._replace(value=bytes(value))

    yield Case(
        "signed by a stranger",
        "unknown-signer",
        f"signed by {stranger.name}",
        lambda: signed(theirs),
    )
    old = right._replace(name=f"{signing.name}-2019")
    yield Case(
        "the right signature by an old name", "unknown-signer", old.name, lambda: signed(old)
    )
    wrong = "its signature is not that of"
    stolen = theirs._replace(name=signing.name)
    yield Case("a stranger by the trusted name", "bad-signature", wrong, lambda: signed(stolen))
    for at in (0, 31, 32, 63):
        yield Case(
            f"a bit of byte {at} of the signature",
            "bad-signature",
            wrong,
            lambda at=at: signed(flipped(at)),
        )
    for what, value in (
        ("zeros", bytes(64)),
        ("the identity", b"\1" + bytes(63)),
        ("ones", b"\xff" * 64),
    ):
        bad = Signature(signing.name, value)
        yield Case(f"{what} for a signature", "bad-signature", wrong, lambda bad=bad: signed(bad))
    bare = signing.sign(parts.statement)
    yield Case("signed without what stands before", "bad-signature", wrong, lambda: signed(bare))
    other = signing.sign(b"gpucache pack 2\n" + parts.statement)
    yield Case("signed as another format", "bad-signature", wrong, lambda: signed(other))
    both = Parts(signing).edit(lambda head, _: head.update(name="weekly"))
    elsewhere = signing.sign(SIGNED_BEFORE + both.statement)
    yield Case("the signature of another pack", "bad-signature", wrong, lambda: signed(elsewhere))
    yield Case(
        "a bad one beside a stranger's", "bad-signature", wrong, lambda: signed(theirs, flipped(5))
    )
    for name, at in (
        ("its name", 50),
        ("a digest", len(parts.statement) - 30),
        ("its first byte", 0),
    ):
        yield Case(
            f"a bit of {name} in the statement",
            "bad-signature",
            wrong,
            lambda at=at: changed_at(signing, at),
        )
    unsigned = Parts(signing)
    tar = unsigned.tar()
    without = (
        tar[: tar.index(b"gpucache-pack.sig")] + tar[tar.index(unsigned.files[0][0].encode()) :]
    )
    yield Case("unsigned", "unsigned", "nobody has signed it", lambda: zst(without))
    only = tar[: tar.index(b"gpucache-pack.sig")] + END
    yield Case("a statement alone", "unsigned", "nobody has signed it", lambda: zst(only))


def changed_at(signing: SigningKey, at: int) -> bytes:
    """A pack with the signature of its statement as that was before a bit was changed."""
    parts = Parts(signing)
    parts.signatures = parts.right_signatures()
    statement = bytearray(parts.statement)
    statement[at] ^= 1
    parts.statement = bytes(statement)
    return zst(parts.tar())


def malformed(signing: SigningKey) -> Iterator[Case]:
    """Signatures that are not even read; none is ever checked against a key."""
    right = json.loads(Parts(signing).right_signatures())[0]
    text = right["signature"]

    def made(content: bytes) -> bytes:
        parts = Parts(signing)
        parts.signatures = content
        return zst(parts.tar())

    for name, fact, said in (
        ("an empty list", "no list of 1 to 16", []),
        ("no list", "no list", right),
        ("a number", "no list", 7),
        ("null", "no list", None),
        ("17", "no list of 1 to 16", [right] * 17),
        ("one twice", "one name twice", [right, right]),
        ("a name with two", "one name twice", [right, {**right, "signature": "B" + text[1:]}]),
        ("no name", "no name and signature", [{"signature": text}]),
        ("no signature", "no name and signature", [{"name": right["name"]}]),
        ("a field more", "no name and signature", [{**right, "time": 1}]),
        ("a text", "no name and signature", ["ci"]),
        ("a list in a list", "no name and signature", [[right]]),
        ("a name that is a number", "name is no text", [{**right, "name": 1}]),
        ("a name that is a truth value", "name is no text", [{**right, "name": True}]),
        ("a name with an escape", "\\x1b[31m", [{**right, "name": "\x1b[31mci"}]),
        ("half a letter for a name", "'\\ud800'", [{**right, "name": "\ud800"}]),
        ("an empty name", "no name of a key", [{**right, "name": ""}]),
        ("a name of 65 letters", "no name of a key", [{**right, "name": "a" * 65}]),
        ("a name with a colon", "no name of a key", [{**right, "name": "ci:x"}]),
        ("a signature that is a number", "no base64url", [{**right, "signature": 1}]),
        ("a signature that is null", "no base64url", [{**right, "signature": None}]),
        ("a short signature", "no base64url", [{**right, "signature": text[:-2]}]),
        ("a long signature", "no base64url", [{**right, "signature": text + "AA"}]),
        ("padding", "no base64url", [{**right, "signature": text + "=="}]),
        ("plain base64", "no base64url", [{**right, "signature": "+/" + text[2:]}]),
        ("blanks in a signature", "no base64url", [{**right, "signature": f" {text}"}]),
        ("bits that are not used", "no base64url", [{**right, "signature": text[:-1] + "_"}]),
    ):
        content = json.dumps(said, separators=(",", ":")).encode() + b"\n"
        yield Case(f"signatures: {name}", "signatures", fact, lambda content=content: made(content))
    canonical = Parts(signing).right_signatures()
    for name, fact, content in (
        ("nothing", "no JSON", b""),
        ("no JSON", "no JSON", b"-----BEGIN PGP SIGNATURE-----\n"),
        ("half of them", "no JSON", canonical[:40]),
        ("NaN", "no list", b"NaN"),
        ("bytes", "no JSON", b"\xff\xfe" * 20),
        ("two lists", "no JSON", canonical * 2),
        ("nested deeply", "no JSON", b"[" * 60_000),
        ("a number of 60,000 digits", "no JSON", b"[" + b"9" * 60_000 + b"]"),
        ("more than 64 KiB", "have 65537 bytes", canonical.ljust(2**16 + 1)),
        ("blanks", "another way", canonical.replace(b",", b", ")),
        ("no end of the line", "another way", canonical[:-1]),
        ("one name twice in one", "another way", canonical.replace(b"[{", b'[{"name":"x",')),
        ("an escaped letter", "another way", canonical.replace(b'"name"', b'"\\u006eame"')),
    ):
        yield Case(f"signatures: {name}", "signatures", fact, lambda content=content: made(content))
