"""The statement ``gpucache-pack.json``: what a pack says of itself, and what is signed.

It is JSON, laid out so that it is read a line at a time, as 64 MiB of braces would be a gigabyte of Python's objects:
first a line that says the format and names the pack, then an entry a line, then the end::

    {"format":"gpucache pack","version":1,"name":"nightly","number":7,"entries":[
    {"key":"…","kind":"kernel","arch":"sm_90",…,"files":[["add.cubin",5120,"<SHA-256>"],…]},
    {"key":"…",…}
    ]}

A reader passes over what it does not know of an entry; what it must not pass over is another version. Whether a
statement is to be believed, `gpucache.archive.trusted_keys` tells by these very bytes, before
`gpucache.archive.parsing` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from gpucache.archive.errors import quoted
from gpucache.errors import GpuCacheError
from gpucache.kernels.metadata import arch_of
from gpucache.store.manifest import Facts

Kind = Literal["kernel", "library", "autotune", "inductor"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FORMAT = "gpucache pack"
VERSION = 1
SIGNED_BEFORE = b"gpucache pack 1\n"
"""What stands before the statement in the bytes that are signed, so that no signature of anything else fits."""

MOST_BYTES = 64 * 2**20
"""A longer statement is not read."""
MOST_LINE_BYTES = 2**20
"""Of one entry; a manifest may be as long (`gpucache.store.manifest.MOST_BYTES`)."""
MOST_MEMORY = 110_000_000
"""Bytes of memory that a statement and what is made of it may take: 24,000 entries of Triton 3.9, 37,000 slim ones."""
MOST_NUMBER = 2**63 - 1

REQUIRED_FITS: dict[Kind, frozenset[str]] = {
    "kernel": frozenset(),
    "library": frozenset(("machine", "abi", "libc")),
    "autotune": frozenset(("device",)),
    "inductor": frozenset(),
}
"""What a statement has to say of an entry of each kind, so that the entry is taken only where it fits."""


A_NAME = (
    "up to 100 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
)
"""What a pack may be called, in words."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(text: str) -> bool:
    """Whether a pack may have this name, which is one plain component of a path and of a URL."""
    return _NAME.fullmatch(text) is not None


class PackNameError(GpuCacheError, ValueError):
    """Something is no name that a pack may have."""

    error_kind = "pack-name"

    def __init__(self, name: str, hint: str) -> None:
        problem = f"{quoted(name)} is no name of a pack: {A_NAME}"
        super().__init__(problem, hint, name, hint)
        self.name = name


class ArchivedFile(NamedTuple):
    """One file of an entry."""

    name: str
    """One plain component; of an entry of kind ``inductor`` the path below a root, as torch has it."""
    size_bytes: int
    sha256: str
    """Digest of the content, in hexadecimal."""


class ArchivedEntry(NamedTuple):
    """One entry of a pack."""

    key: str
    """Triton's key; empty for ``inductor``."""
    kind: Kind
    facts: Facts
    files: tuple[ArchivedFile, ...]
    recipe: ArchivedFile | None = None
    """The file ``__recipe__.json``, which is no file of Triton's."""
    fits: Mapping[str, str] = {}
    """Where the entry may be used, as `REQUIRED_FITS` has it; everywhere, if empty."""

    @property
    def store_key(self) -> str:
        """The key under which the store has the entry; of ``inductor`` the unit, which no store has.

        It is different for each entry of a pack.
        """
        if self.kind == "inductor":
            return self.facts.kernel
        return self.facts.store_key(self.key)

    @property
    def arch(self) -> str | None:
        """The architecture, such as ``sm_90``; None where the metadata do not say it."""
        target = self.facts.target
        return None if target is None else arch_of(target)

    @property
    def members(self) -> tuple[ArchivedFile, ...]:
        """All files in the order in which a pack has them: Triton's, then the recipe."""
        return self.files if self.recipe is None else (*self.files, self.recipe)

    @property
    def size_bytes(self) -> int:
        """The bytes of all members."""
        return sum(file.size_bytes for file in self.members)


class Statement(NamedTuple):
    """What a pack says of itself."""

    name: str
    """The name of the pack; empty for a single entry of a remote."""
    number: int
    """Rises with each pack of that name, so that an old one is told from a new one."""
    entries: tuple[ArchivedEntry, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all members."""
        return sum(entry.size_bytes for entry in self.entries)


def encoded(statement: Statement) -> bytes:
    """The bytes of a statement: for equal statements equal bytes.

    Not every statement is one that `gpucache.archive.parsing` takes: `gpucache.archive.write` looks.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "name": statement.name,
        "number": statement.number,
        "entries": [],
    }
    entries = ",\n".join(_text(_said(entry)) for entry in statement.entries)
    beginning = _text(head).removesuffix("]}")
    between = "\n" if entries else ""
    return f"{beginning}\n{entries}{between}]}}\n".encode("ascii")


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _said(entry: ArchivedEntry) -> dict[str, object]:
    said: dict[str, object] = {
        "key": entry.key,
        "kind": entry.kind,
        "arch": entry.arch,
        **entry.facts._asdict(),
        "files": entry.files,
    }
    if entry.recipe is not None:
        said["recipe"] = entry.recipe
    if entry.fits:
        said["fits"] = dict(sorted(entry.fits.items()))
    return said
