"""The statement ``gpucache-pack.json``: what a pack says of itself, and what is signed.

It is JSON, laid out so that it is read a line at a time, as 64 MiB of braces would be a gigabyte of Python's objects:
first a line that says the format and names the pack, then an entry a line, then the end::

    {"format":"gpucache pack","version":1,"name":"nightly","number":7,"entries":[
    {"key":"…","kind":"kernel","arch":"sm_90",…,"files":[["add.cubin",5120,"<SHA-256>"],…]},
    {"key":"…",…}
    ]}

A reader passes over what it does not know of an entry; what it must not pass over is another version. Whether a
statement is to be believed, `gpucache.archive.signature` tells by these very bytes, before they are parsed here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from gpucache.archive.errors import BadPack, quoted
from gpucache.disk.door import HASHED_BYTES
from gpucache.kernels.group import AUTOTUNE, GROUP, are_plain
from gpucache.kernels.metadata import arch_of
from gpucache.kernels.recipe import MOST_BYTES as MOST_RECIPE_BYTES
from gpucache.layout.inductor import carried_unit
from gpucache.layout.keys import KEY
from gpucache.store.manifest import CONDEMNED, MANIFEST, RECIPE, Facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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
"""Bytes of memory that a statement and what is made of it may take: 25,000 entries of seven files each."""
MOST_NUMBER = 2**63 - 1
MOST_TEXT = 1000
"""Letters of a text, such as the name of a kernel."""
_MOST_NAME_BYTES = 255 - len(GROUP)  # as `gpucache.store.names`
_MOST_FITS = 16

REQUIRED_FITS: dict[Kind, frozenset[str]] = {
    "kernel": frozenset(),
    "library": frozenset(("machine", "abi", "libc")),
    "autotune": frozenset(("device",)),
    "inductor": frozenset(),
}
"""What a statement has to say of an entry of each kind, so that the entry is taken only where it fits."""


_ENDS: dict[Kind, str] = {"library": ".so", "autotune": AUTOTUNE}
"""How the name of the only file ends, of the kinds that have one (`gpucache.kernels.group.STANDALONE`)."""


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


# ---- writing


def encoded(statement: Statement) -> bytes:
    """The bytes of a statement: for equal statements equal bytes.

    Not every statement is one that `parsed` takes: `gpucache.archive.write` looks.
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


# ---- reading


def parsed(data: bytes, begin: int = 0) -> Statement:
    """Read a statement, of which nothing is believed: every type, length, name, size and repeated key is checked.

    The statement is what ``data`` has from ``begin`` on, so that a long one need not be copied. Takes no more memory
    than `MOST_MEMORY` with ``data``, and some for a line, whatever that says.

    Raises:
        BadPack: the code and the fact say which entry has which flaw.
    """
    if len(data) - begin > MOST_BYTES:
        raise BadPack("too-long", f"the statement has more than {MOST_BYTES >> 20} MiB")
    lines = _lines(data, begin)
    name, number = _head(next(lines, b""))
    left = MOST_MEMORY - len(data)
    entries: list[ArchivedEntry] = []
    for line in _entry_lines(lines):
        try:
            entry = _entry(_object(line))
        except BadPack as error:
            raise BadPack(error.code, f"entry {len(entries) + 1}: {error.fact}") from None
        left -= _memory(entry)
        if left < 0:
            fact = f"the statement takes more than {MOST_MEMORY // 10**6} MB of memory"
            raise BadPack("too-many", f"{fact} with its entry {len(entries) + 1}")
        entries.append(entry)
    _refuse_repeated(entries)
    return Statement(name, number, tuple(entries))


def _lines(data: bytes, begin: int) -> Iterator[bytes]:
    """Each line without its end.

    Raises:
        BadPack: a line is too long, or the last one has no end.
    """
    while begin < len(data):
        end = data.find(b"\n", begin, begin + MOST_LINE_BYTES)
        if end < 0:
            if len(data) - begin < MOST_LINE_BYTES:
                raise BadPack("format", "the statement's last line has no end")
            raise BadPack(
                "too-long", f"the statement has a line of more than {MOST_LINE_BYTES} bytes"
            )
        yield data[begin:end]
        begin = end + 1


def _head(line: bytes) -> tuple[str, int]:
    """The name and the number in the first line."""
    if not line.endswith(b',"entries":['):
        raise BadPack("format", "the statement's first line is not that of a pack")
    said = _object(line + b"]}")
    if said.get("format") != FORMAT:
        raise BadPack("format", "the statement is of another format")
    version = said.get("version")
    if type(version) is not int:
        raise BadPack("version", "the statement's version is no whole number")
    if version != VERSION:
        raise BadPack("version", f"the statement is of version {version}, which is not known here")
    name = said.get("name")
    if type(name) is not str or not (name == "" or is_name(name)):
        raise BadPack("value", "the statement's name is not that of a pack")
    return name, _whole(said.get("number"), MOST_NUMBER, "value", "the statement's number")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(text: str) -> bool:
    """Whether a pack may be called so: letters, digits, ``._-``, the first one a letter or digit, 128 at most."""
    return _NAME.fullmatch(text) is not None


def _entry_lines(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of the entries, each without its comma; the last line ends the statement, and nothing follows."""
    waiting: bytes | None = None
    for line in lines:
        if line == b"]}":
            if waiting is not None:
                yield waiting
            if next(lines, None) is not None:
                raise BadPack("format", "the statement goes on after its end")
            return
        if waiting is not None:
            if not waiting.endswith(b","):
                raise BadPack("format", "an entry of the statement has no comma after it")
            yield waiting[:-1]
        waiting = line
    raise BadPack("format", "the statement has no end")


def _entry(said: dict[str, Any]) -> ArchivedEntry:
    kind = _shown(said, "kind")
    if kind not in KINDS:
        raise BadPack("kind", f"its kind is {quoted(kind)}, which is not known here")
    facts = Facts(
        kernel=_shown(said, "kernel"),
        group=_shown_or_none(said, "group"),
        target=_shown_or_none(said, "target"),
        triton_version=_shown_or_none(said, "triton_version"),
        compile_s=_seconds_or_none(said.get("compile_s")),
        tag=_shown(said, "tag"),
    )
    key = _shown(said, "key")
    files = tuple(_file(listed, kind) for listed in _list(said, "files"))
    recipe = said.get("recipe")
    entry = ArchivedEntry(
        key,
        kind,
        facts,
        files,
        None if recipe is None else _recipe(recipe),
        _fits(said.get("fits", {})),
    )
    _check_entry(entry)
    if said.get("arch") != entry.arch:
        raise BadPack("value", "its arch is not that of its target")
    return entry


def _check_entry(entry: ArchivedEntry) -> None:
    """Check what no field shows alone: that key, kind, group and files agree."""
    names = {file.name for file in entry.files}
    if len(names) < len(entry.files):
        raise BadPack("repeated-name", "it has two files of one name")
    if not names:
        raise BadPack("value", "it has no files")
    is_kernel, is_inductor = entry.kind == "kernel", entry.kind == "inductor"
    if is_inductor != (entry.key == "") or not (is_inductor or KEY.fullmatch(entry.key)):
        raise BadPack("key", f"its key {quoted(entry.key)} is none of Triton's")
    group = entry.facts.group
    if (group is not None) != is_kernel:
        raise BadPack("group", "a kernel has a group, and nothing else has one")
    if group is not None and group not in names:
        raise BadPack("group", f"its group {quoted(group)} is none of its files")
    if f"{GROUP}{group}" in names:
        raise BadPack("file-name", "a file has the name of the group file, which holds paths")
    end = _ENDS.get(entry.kind)
    if end is not None and names != {entry.facts.kernel}:
        raise BadPack("group", "a file that stands for itself is not the one that it says")
    if end is not None and not entry.facts.kernel.endswith(end):
        raise BadPack(
            "kind", f"its kind is {entry.kind}, and its file's name does not end in {end}"
        )
    if is_inductor:
        _check_unit(entry)
    missing = REQUIRED_FITS[entry.kind] - entry.fits.keys()
    if missing:
        raise BadPack("fits", f"it does not say where it fits: {', '.join(sorted(missing))}")


def _check_unit(entry: ArchivedEntry) -> None:
    """Check that the files of TorchInductor's are those of one unit, by names that torch gives such files."""
    for file in entry.files:
        unit = carried_unit(file.name)
        if unit is None:
            raise BadPack("file-name", f"{quoted(file.name)} is no name of TorchInductor's")
        if unit != entry.facts.kernel:
            raise BadPack("group", f"{quoted(file.name)} is of another unit than the entry")
    if entry.recipe is not None:
        raise BadPack("value", "a recipe is not TorchInductor's")


def _refuse_repeated(entries: list[ArchivedEntry]) -> None:
    """Refuse two entries under one key; of TorchInductor's that is the unit, and no file is of two units."""
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        key = entry.store_key
        if key in seen:
            raise BadPack("repeated-key", f"entry {number}: {quoted(key)} is there twice")
        seen.add(key)


_SLOT_BYTES = 64  # in the entry's tuple, and in the set of what is there already
_size = sys.getsizeof


def _memory(entry: ArchivedEntry) -> int:
    """About how many bytes of memory an entry takes: a letter of JSON may become four bytes."""
    taken = sum(map(_size, entry)) + sum(map(_size, entry.facts)) + _size(entry)
    for file in entry.members:
        taken += sum(map(_size, file)) + _size(file) + _SLOT_BYTES
    for name, value in entry.fits.items():
        taken += _size(name) + _size(value)
    return taken + _SLOT_BYTES


# ---- values


class _Refused(ValueError):
    """A value of JSON that is never one of a statement's."""


def _number(text: str) -> int:
    if len(text) > 20:  # int() of a million digits takes seconds
        raise _Refused("a number of more than 20 digits")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > 40:
        raise _Refused("a number of more than 40 digits")
    return float(text)


def _constant(text: str) -> float:
    raise _Refused(f"{text}, which is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise _Refused("one name twice")
    return named


_decode = json.JSONDecoder(
    parse_float=_fraction, parse_int=_number, parse_constant=_constant, object_pairs_hook=_once
).decode


def _object(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        BadPack: it is no JSON, or no object, has a name twice, or is nested too deeply.
    """
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise BadPack("encoding", "it has letters that are not ASCII, and not escaped") from None
    try:
        said = _decode(text)
    except _Refused as error:
        raise BadPack("json", f"it has {error}") from None
    except ValueError:
        raise BadPack("json", "it is no JSON") from None
    except RecursionError:
        raise BadPack("json", "it is nested too deeply") from None
    if type(said) is not dict:
        raise BadPack("json", "it is no object of JSON")
    return said


def _shown(said: dict[str, Any], name: str) -> str:
    """A text that can be shown: no controls, no halves of letters, 1,000 letters at most."""
    text = said.get(name)
    if type(text) is not str:
        raise BadPack("value", f"its {name} is no text")
    _check_shown(text, name)
    return text


def _shown_or_none(said: dict[str, Any], name: str) -> str | None:
    return None if said.get(name) is None else _shown(said, name)


def _check_shown(text: str, what: str) -> None:
    if len(text) > MOST_TEXT:
        raise BadPack("text", f"its {what} has more than {MOST_TEXT} letters")
    if not text.isprintable():
        raise BadPack("text", f"its {what} {quoted(text)} cannot be shown")


def _list(said: dict[str, Any], name: str) -> list[Any]:
    found = said.get(name)
    if type(found) is not list:
        raise BadPack("value", f"its {name} are no list")
    return found


def _whole(value: object, most: int, code: Literal["value", "size"], what: str) -> int:
    # a truth value is an int to Python, and a float may be a whole number
    if type(value) is not int or not 0 <= value <= most:
        raise BadPack(code, f"{what} is no whole number from 0 to {most}")
    return value


def _seconds_or_none(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise BadPack("value", "its compile_s is no number of seconds")
    return value  # type: ignore[return-value]


_DIGEST = re.compile(r"[0-9a-f]{64}")


def _file(listed: object, kind: str) -> ArchivedFile:
    if type(listed) is not list or len(listed) != 3:
        raise BadPack("value", "a file is not listed as name, size and digest")
    name, size_bytes, sha256 = listed
    if type(name) is not str:
        raise BadPack("file-name", "the name of a file is no text")
    _check_name(name, kind)
    _whole(size_bytes, HASHED_BYTES, "size", f"the size of {quoted(name)}")
    if type(sha256) is not str or not _DIGEST.fullmatch(sha256):
        raise BadPack("digest", f"the digest of {quoted(name)} is none of SHA-256")
    return ArchivedFile(name, size_bytes, sha256)


_OURS = frozenset((MANIFEST, CONDEMNED, RECIPE))


def _check_name(name: str, kind: str) -> None:
    _check_shown(name, "file name")
    parts = name.split("/") if kind == "inductor" else [name]
    if not are_plain(parts):
        raise BadPack("file-name", f"the file name {quoted(name)} leads elsewhere")
    if any(len(part.encode()) > _MOST_NAME_BYTES for part in parts):
        raise BadPack("file-name", f"the file name {quoted(name)} is too long")
    if not _OURS.isdisjoint(parts):
        raise BadPack("file-name", f"the file name {quoted(name)} is one of gpucache's own")


def _recipe(listed: object) -> ArchivedFile:
    if type(listed) is not list or len(listed) != 3 or listed[0] != RECIPE:
        raise BadPack("value", f"its recipe is not listed as {RECIPE}, size and digest")
    # checked as any other file but for the name, which no file of Triton's has
    _, size_bytes, sha256 = _file(["recipe", *listed[1:]], "kernel")
    if size_bytes > MOST_RECIPE_BYTES:
        raise BadPack("size", f"its recipe has more than {MOST_RECIPE_BYTES} bytes")
    return ArchivedFile(RECIPE, size_bytes, sha256)


def _fits(said: object) -> dict[str, str]:
    if type(said) is not dict or len(said) > _MOST_FITS:
        raise BadPack("fits", f"what it fits is no object of at most {_MOST_FITS} texts")
    for name, value in said.items():
        if type(value) is not str:
            raise BadPack("fits", f"what it fits, {quoted(name)}, is no text")
        _check_shown(name, "fits")
        _check_shown(value, "fits")
    return said
