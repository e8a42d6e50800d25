"""Read the files of a kernel through the `door`, and list directories, without renewing any access time.

An access time is all that tells of the last use of what stock Triton cached. Linux lets only the owner of a file, and
root, read the file without renewing it (``O_NOATIME``).
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import NamedTuple

from gpucache.disk.door import HASHED_BYTES, SAFELY, open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Opener = Callable[[str, int], int]
    """What `open` takes as its ``opener``: from a path and flags to a descriptor."""

_MOST_BYTES = 256 * 2**20
_PART_BYTES = 2**20
_NO_ACCESS_TIME = getattr(os, "O_NOATIME", 0)  # Linux's


def quietly(path: str, flags: int) -> int:
    """Open a regular file as this module does (an opener for `open`).

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    return _opened(path, flags)[0]


def read(path: str, most_bytes: int = _MOST_BYTES) -> bytes:
    """Read a regular file of a kernel whole.

    Raises:
        OSError: the file cannot be read, is no regular file, or is longer than ``most_bytes``, by default than any
            kernel's.
    """
    return read_stated(path, most_bytes)[0]


def read_stated(path: str, most_bytes: int = _MOST_BYTES) -> tuple[bytes, os.stat_result]:
    """Read a regular file of a kernel whole; return its content, and its `os.stat` after the last byte was read.

    Raises:
        OSError: as `read`.
    """
    fd, found = _opened(path)
    try:
        _refuse_too_long(path, found, most_bytes)
        content = b"".join(_parts(fd, found.st_size))
        return content, os.fstat(fd)
    finally:
        os.close(fd)


def read_head(path: str, length: int) -> tuple[bytes, int]:
    """Read the first bytes of a regular file; return them, and the size of the file.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    fd, found = _opened(path)
    try:
        return os.read(fd, length), found.st_size
    finally:
        os.close(fd)


def digest(path: str) -> tuple[str, os.stat_result]:
    """The SHA-256 of a regular file, in hexadecimal, and its `os.stat` after the last byte was read.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    taken = read_digested(path)
    return taken.sha256, taken.found


class Digested(NamedTuple):
    """A file that was read once, from beginning to end."""

    sha256: str
    """In hexadecimal."""
    data: bytes
    """The whole content of a file of a MiB at most, or where that was asked for; else the first MiB."""
    found: os.stat_result
    """The `os.stat` of the file after the last byte was read."""


def read_digested(path: str, whole: bool = False) -> Digested:
    """Read a regular file once, for its digest and its content; ``whole`` keeps all of it, however long.

    Raises:
        OSError: the file cannot be read, is no regular file, or is longer than any kernel's: of one that is kept whole
            256 MiB, else a GiB.
    """
    fd, found = _opened(path)
    try:
        _refuse_too_long(path, found, _MOST_BYTES if whole else HASHED_BYTES)
        digest = hashlib.sha256()
        kept: list[bytes] = []
        for part in _parts(fd, found.st_size):
            digest.update(part)
            if whole or not kept:
                kept.append(part)
        content = b"".join(kept)
        return Digested(digest.hexdigest(), content, os.fstat(fd))
    finally:
        os.close(fd)


def _refuse_too_long(path: str, found: os.stat_result, most_bytes: int = _MOST_BYTES) -> None:
    if found.st_size > most_bytes:
        message = os.strerror(errno.EFBIG)
        raise OSError(errno.EFBIG, message, path)


def _parts(fd: int, size: int) -> Iterator[bytes]:
    """Read an open file of this size to its end, in parts of a MiB at most, even if it has grown meanwhile."""
    done = 0
    wanted = min(size + 1, _PART_BYTES)
    while part := os.read(fd, wanted):
        yield part
        done += len(part)
        if done == size < _PART_BYTES:
            return  # one byte more was asked for, and is not there: this is the end


def listing(directory: str) -> tuple[os.stat_result, dict[str, os.stat_result]]:
    """The `os.lstat` of a directory, and those of what is in it, by name; what vanishes meanwhile is left out.

    Raises:
        OSError: the directory cannot be listed, or is no directory.
    """
    fd = _open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = {}
        for name in sorted(os.listdir(fd)):
            try:
                found[name] = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
        return os.fstat(fd), found
    finally:
        os.close(fd)


def listed(directory: str) -> list[str]:
    """The paths of what is in a directory, sorted; none where the directory is gone or may not be listed."""
    try:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))
    except OSError:
        return []


def names(directory: str) -> dict[str, bool]:
    """The names in a directory, sorted, each with whether it is that of a symbolic link.

    Raises:
        OSError: the directory cannot be listed, or is no directory.
    """
    fd = _open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as items:
            found = {item.name: item.is_symlink() for item in items}
        return dict(sorted(found.items()))
    finally:
        os.close(fd)


def _opened(path: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
    """Open a regular file; return its descriptor and its `os.stat`. Anything else raises `OSError`."""
    try:
        return open_regular(path, flags | _NO_ACCESS_TIME)
    except PermissionError:
        # Another user's file: Linux lets us read it only with a new access time.
        return open_regular(path, flags)


def _open(path: str, flags: int) -> int:
    """Open a directory."""
    try:
        return os.open(path, flags | SAFELY | _NO_ACCESS_TIME)
    except PermissionError:  # as in `_opened`
        return os.open(path, flags | SAFELY)
