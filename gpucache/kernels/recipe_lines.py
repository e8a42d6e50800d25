"""A file of recipes: first a line that says the format, then a recipe a line.

Several processes append to one file, whole lines, each with one `write`. Each that finds the file empty writes the line
of the format, so that this line may stand anywhere. A line that was torn, as on a full disk, is told and passed over;
whoever writes after it ends it first. Of the recipes of one key the reader drops all but the first: each rank of a job
has written its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.door import SAFELY, opener
from gpucache.errors import A_RECIPE_FILE, GpuCacheError
from gpucache.kernels.recipe import MOST_BYTES, BadRecipe, Recipe, from_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

VERSION = 1
FORMAT_LINE = b'{"format": "gpucache recipes", "version": 1}\n'
"""The first line of each file of recipes."""
MOST_FILE_BYTES = 256 * 2**20
"""Of a longer file nothing is read."""
_FORMAT = b'{"format"'


class BadLine(NamedTuple):
    """A line of a file of recipes that is no recipe."""

    number: int
    """Of the line, from 1."""
    reason: str


_FEWER = "name several files with a part of the recipes each"
_ANOTHER = "record to another file (--record, GPUCACHE_RECORD)"


class BadRecipeFile(GpuCacheError, ValueError):
    """A file of which no recipe is read: ``path`` names it, ``reason`` says why."""

    error_kind = "bad-recipes"

    def __init__(self, path: str, reason: str, hint: str = A_RECIPE_FILE) -> None:
        super().__init__(f"{path} is no file of recipes: {reason}", hint, path, reason, hint)
        self.path = path
        self.reason = reason


def read_recipe_file(path: str) -> Iterator[Recipe | BadLine]:
    """The recipes of a file, each key once, and for each line that is none why; one line at a time is in memory.

    Raises:
        OSError: the file cannot be read, or is no regular file.
        BadRecipeFile: it is too long, does not begin with the line of the format, or is of an unknown version. Also
            while lines are read: another version's may have been appended.
    """
    with open(path, "rb", opener=opener) as file:
        if os.fstat(file.fileno()).st_size > MOST_FILE_BYTES:
            raise BadRecipeFile(path, f"more than {MOST_FILE_BYTES >> 20} MiB", _FEWER)
        yield from read_recipes(file, path)


def read_recipes(file: BinaryIO, path: str) -> Iterator[Recipe | BadLine]:
    """As `read_recipe_file`, of an open file, which may be a pipe; ``path`` is its name in errors.

    Raises:
        OSError, BadRecipeFile: as `read_recipe_file`.
    """
    seen: set[str] = set()
    for number, line in _lines(file, path):
        if line is None:
            yield BadLine(number, f"more than {MOST_BYTES} bytes")
            continue
        if line.startswith(_FORMAT):
            _check_format(line, path)
            continue
        if number == 1:
            raise BadRecipeFile(path, "its first line does not say the format")
        found = _read(line, number)
        if isinstance(found, Recipe):
            if found.key in seen:
                continue
            seen.add(found.key)
        if found is not None:
            yield found


def _read(line: bytes, number: int) -> Recipe | BadLine | None:
    """The recipe in a line, or why there is none; None for an empty line."""
    text = line.strip()
    if not text:
        return None
    try:
        return from_text(text)
    except BadRecipe as error:
        torn = "" if line.endswith(b"\n") else "the line is torn: "
        return BadLine(number, torn + error.reason)


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number; None for one that is too long, of which never more than a piece is in memory."""
    number = read_bytes = 0
    goes_on = False
    while True:
        piece = file.readline(MOST_BYTES + 1)
        if piece is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        if not piece:
            return
        read_bytes += len(piece)
        if read_bytes > MOST_FILE_BYTES:
            raise BadRecipeFile(path, f"more than {MOST_FILE_BYTES >> 20} MiB", _FEWER)
        ends = piece.endswith(b"\n")
        too_long = not ends and len(piece) > MOST_BYTES
        if goes_on:
            goes_on = not ends
            continue
        number += 1
        goes_on = too_long
        yield number, None if too_long else piece


def _check_format(line: bytes, path: str) -> None:
    """Check a line that says the format.

    Raises:
        BadRecipeFile: it is another format, or another version of it.
    """
    try:
        said = json.loads(line)
        name, version = said["format"], said["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRecipeFile(path, "the line of the format is torn") from None
    if name != "gpucache recipes":
        raise BadRecipeFile(path, "it is of another format")
    if version != VERSION or type(version) is not int:
        hint = "read it with the gpucache that wrote it, or a later one"
        raise BadRecipeFile(path, "it is of a version that this gpucache does not know", hint)


# ---- writing

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | SAFELY


def append(path: str, recipe: bytes) -> None:
    """Append a recipe, as `to_text` gives it, to a file, which is made for its owner alone where it is not there.

    Beside any number of processes and threads of this node that do the same. Waits for nobody, and follows no link. On
    a network file system the lines of two nodes may overwrite each other (`open(2)`, ``O_APPEND``): a file a node then.

    Raises:
        OSError: the disk refuses, or took only a part of the line.
        BadRecipeFile: what is there is not a file of recipes, is another user's, or is as long as one may be.
    """
    fd = os.open(path, _APPEND, 0o600)
    try:
        line = _beginning(fd, path) + recipe + b"\n"
        if os.write(fd, line) == len(line):
            return
        with suppress(OSError):
            os.write(fd, b"\n")  # or whoever writes next ends the torn line
        raise OSError(errno.ENOSPC, "only a part of the line was written", path)
    finally:
        os.close(fd)


def _beginning(fd: int, path: str) -> bytes:
    """What has to stand before the next recipe in an open file: the line of the format, or the end of a torn line.

    Raises:
        OSError, BadRecipeFile: as `append`.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise BadRecipeFile(path, "it is no regular file", _ANOTHER)
    if found.st_uid != os.geteuid():
        raise BadRecipeFile(path, f"it belongs to the user {found.st_uid}", _ANOTHER)
    if found.st_size == 0:
        return FORMAT_LINE
    if found.st_size > MOST_FILE_BYTES - 2 * MOST_BYTES:
        raise BadRecipeFile(path, f"it has {found.st_size >> 20} MiB already", _ANOTHER)
    if os.pread(fd, len(_FORMAT), 0) != _FORMAT:
        raise BadRecipeFile(path, "its first line does not say the format", _ANOTHER)
    ends = os.pread(fd, 1, found.st_size - 1) == b"\n"
    return b"" if ends else b"\n"
