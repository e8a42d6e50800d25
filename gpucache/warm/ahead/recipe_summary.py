"""What a start of a program needs to know of files of recipes, read from their lines without parsing any.

A program must not wait for this: a thousand recipes take a few milliseconds. Whoever compiles a recipe reads it whole
and checks everything (`gpucache.kernels.recipe`); here a line that looks like none is passed over.
"""

from __future__ import annotations

import json
import os
import re

from gpucache.disk.door import open_regular, read_some
from gpucache.errors import ConfigurationError, RecipesError
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_BYTES = 64 * 2**20
"""Of a longer file the recipes are not looked at before a program starts, as that would take too long."""
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(rb'\{"key":"([A-Za-z0-9_-]{43,64})","triton_version":' + _TEXT + rb",")
"""How `gpucache.kernels.recipe.to_text` begins a line."""
_SOURCE = b',"source":'
"""Before the last field, which may be long; in a text its quotes would be escaped."""
_FILE = re.compile(rb'"function":\[' + _TEXT + b"," + _TEXT + b"," + _TEXT)
_TARGET = re.compile(rb'"target":\["[a-z0-9_]{1,32}",(?:([0-9]{1,6})|"([A-Za-z0-9_.:+-]{1,64})"),')


class RecipeSummary(Value):
    """The recipes of one or several files, as far as their lines tell without being parsed."""

    keys: tuple[str, ...]
    """Triton's keys as recorded, each once."""
    versions: frozenset[str]
    """The versions of Triton by which they were recorded."""
    targets: frozenset[str]
    """The architectures for which: ``sm_90``, ``gfx942``."""
    sources: frozenset[str]
    """The files with the functions."""
    written: float
    """When the oldest of the files was last written, in seconds since the epoch."""


def summary_of(paths: Iterable[str]) -> RecipeSummary:
    """Read files of recipes so.

    Raises:
        RecipesError: one cannot be read, or is no regular file.
        ConfigurationError: one is longer than `MOST_BYTES`.
    """
    keys: dict[str, None] = {}
    versions: set[bytes] = set()
    targets: set[str] = set()
    sources: set[bytes] = set()
    written = float("inf")
    for path in paths:
        data, found = _read(path)
        written = min(written, found.st_mtime)
        for key, version, rest in _lines(data):
            keys[key.decode()] = None
            versions.add(version)
            for number, name in _TARGET.findall(rest):
                targets.add(f"sm_{number.decode()}" if number else name.decode())
            sources.update(match[2] for match in _FILE.findall(rest))
    return RecipeSummary(
        keys=tuple(keys),
        versions=frozenset(map(_text, versions)),
        targets=frozenset(targets),
        sources=frozenset(map(_text, sources)),
        written=written,
    )


def _lines(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Of each line that begins as a recipe does: key, version, and what follows, but for a source that is kept."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            return  # it was torn, or is being written
        match = _LINE.match(data, start, end)
        if match is not None:
            source = data.find(_SOURCE, match.end(), end)
            rest = data[match.end() : end if source < 0 else source]
            yield match[1], match[2], rest
        start = end + 1


def has_recipe(path: str) -> bool:
    """Whether a file has a whole recipe, by what it begins with. False where it cannot be read."""
    try:
        fd, _ = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            head = read_some(file, 2**20 + 4096)
    except OSError:
        return False
    return any(True for _ in _lines(head))


def _read(path: str) -> tuple[bytes, os.stat_result]:
    try:
        fd, found = open_regular(path)
    except OSError as error:
        raise RecipesError(path, error.strerror or str(error)) from None
    with os.fdopen(fd, "rb") as file:
        if found.st_size > MOST_BYTES:
            raise ConfigurationError("--warm", path, f"a file of at most {MOST_BYTES >> 20} MiB")
        try:
            return read_some(file), found
        except OSError as error:
            raise RecipesError(path, error.strerror or str(error)) from None


def _text(data: bytes) -> str:
    """The text that stands in JSON between quotes."""
    if b"\\" not in data:
        return data.decode("utf-8", "replace")
    try:
        text: str = json.loads(b'"%s"' % data)
    except ValueError:
        return ""
    return text
