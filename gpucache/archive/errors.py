"""What is wrong with a pack, and with a key by which packs are signed; one code per kind of flaw.

A pack may come from anybody, so that no text of its own stands in an error but in quotes, escaped and cut.
"""

from __future__ import annotations

from gpucache.errors import GpuCacheError
from gpucache.escapes import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    PackFlaw = Literal[
        # the compressed stream
        "not-zstd",
        "window",
        "corrupt",
        "truncated",
        "second-frame",
        "trailing-bytes",
        # the members of the archive
        "header",
        "checksum",
        "member-type",
        "member-size",
        "member-name",
        "absolute-name",
        "parent-name",
        "repeated-member",
        "missing-member",
        "trailing-member",
        "header-field",
        "padding",
        "end",
        # the statement
        "no-statement",
        "too-long",
        "encoding",
        "json",
        "format",
        "version",
        "value",
        "text",
        "kind",
        "key",
        "file-name",
        "repeated-name",
        "repeated-key",
        "size",
        "digest",
        "group",
        "fits",
        "too-many",
        "too-large",
        # who vouches for it
        "signatures",
        "unsigned",
        "unknown-signer",
        "bad-signature",
        # the files
        "file-digest",
        "contradiction",
        "file-changed",
        # where it lies
        "another-name",
    ]
    KeyFlaw = Literal[
        "syntax",
        "name",
        "key",
        "weak-key",
        "repeated-name",
        "repeated-key",
        "no-keys",
        "secret",
        "not-secret",
        "readable",
        "writable",
        "owner",
        "unreadable",
        "unwritable",
        "exists",
        "too-long",
    ]

_ANOTHER = (
    "get the pack anew, or ask who made it; no entry is taken that is not whole and vouched for"
)
_HINTS: dict[str, str] = {
    "not-zstd": "name a file that `gpucache pack` has written",
    "window": "pack it anew with `gpucache pack`, or compress it with a window of 8 MiB at most",
    "second-frame": "give it as `gpucache pack` wrote it: one frame of zstd, and nothing after it",
    "truncated": "get the pack anew: it ends too early",
    "version": "read it with the gpucache that wrote it, or a later one",
    "too-long": "pack fewer entries (--kernel, --arch, --used-since)",
    "too-many": "pack fewer entries (--kernel, --arch, --used-since)",
    "too-large": "take a part of it (--arch), or make room",
    "unsigned": "sign it where it is packed (GPUCACHE_SIGN_KEY), or accept it as it is (`gpucache unpack --unsigned`)",
    "unknown-signer": "if you believe that signer, add the public key to GPUCACHE_TRUST_KEYS",
    "bad-signature": "do not use it: get the pack anew, from another place, and ask who made it",
    "file-changed": "pack again",
}


class BadPack(GpuCacheError, ValueError):
    """A pack, or an object of a remote, is not what `gpucache.archive.write` writes, or nobody trusted vouches for it.

    Nothing of the file that is refused is used. Entries that were read whole before are sound, and may be in the store.
    """

    error_kind = "bad-pack"

    def __init__(self, code: PackFlaw, fact: str, source: str = "", taken: int = 0) -> None:
        super().__init__(_problem(source, fact), _hint(code, taken), code, fact, source, taken)
        self.code: PackFlaw = code
        """The kind of flaw."""
        self.fact = fact
        """What is wrong, in words; texts of the pack in quotes, escaped and cut."""
        self.source = source
        """The path or the URL of the pack; empty where the reader of a part did not know it."""
        self.taken = taken
        """How many entries that came before, whole and vouched for, were taken into a store."""

    def name_source(self, source: str) -> None:
        """Say of which pack this is a flaw.

        The error itself changes, and no other is made of it, whose context it would be: the frames of both can keep 64
        MiB of a statement alive for as long as they keep each other (CPython 3.13).
        """
        self.source = source
        self.problem = _problem(source, self.fact)
        self.args = (self.code, self.fact, source, self.taken)

    def tell_taken(self, taken: int) -> None:
        """Say how many entries were taken before the flaw, which changes this very error as `name_source` does."""
        self.taken = taken
        self.hint = _hint(self.code, taken)
        self.args = (self.code, self.fact, self.source, taken)


def _hint(code: PackFlaw, taken: int) -> str:
    hint = _HINTS.get(code, _ANOTHER)
    if not taken:
        return hint
    return (
        f"{hint} ({taken} that came before the flaw, whole and vouched for, were taken, and stay)"
    )


def _problem(source: str, fact: str) -> str:
    return printable(f"{source}: {fact}" if source else fact)


class BadKey(GpuCacheError, ValueError):
    """A key by which packs are signed or believed cannot be used. No secret is ever in the error."""

    error_kind = "bad-key"

    def __init__(self, code: KeyFlaw, source: str, fact: str, hint: str) -> None:
        problem = printable(f"{source}: {fact}")
        super().__init__(problem, printable(hint), code, source, fact, hint)
        self.code: KeyFlaw = code
        """The kind of flaw."""
        self.source = source
        """The path of the file, or the variable or parameter that has the list."""
        self.fact = fact


_MOST_LETTERS = 80


def quoted(text: str) -> str:
    """A text of a pack as an error may show it: in quotes, escaped, and cut after 80 letters."""
    shown = ascii(text[:_MOST_LETTERS])
    return shown if len(text) <= _MOST_LETTERS else f"{shown} and so on"
