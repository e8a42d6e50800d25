"""Read a cache without a trace: no link is followed, no FIFO waited for, no access time renewed where that is allowed.

An access time is all that tells of the last use of what stock Triton cached.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_QUIET = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_MOST_BYTES = 256 * 2**20
_PART_BYTES = 2**20
_NO_ACCESS_TIME = getattr(os, "O_NOATIME", 0)  # Linux's


def quietly(path: str, flags: int) -> int:
    """An opener for `open`, for regular files.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _opened(path, flags)[0]


def read(path: str) -> bytes:
    """The content of a regular file of a kernel.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer than any kernel's.
    """
    return read_stated(path)[0]


def read_stated(path: str) -> tuple[bytes, os.stat_result]:
    """As `read`; and the file as it was after the last byte was read.

    Raises:
        OSError: as `read`.
    """
    fd, found = _opened(path)
    try:
        if found.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return b"".join(_parts(fd, found.st_size)), os.fstat(fd)
    finally:
        os.close(fd)


def read_head(path: str, length: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, and its size.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    fd, found = _opened(path)
    try:
        return os.read(fd, length), found.st_size
    finally:
        os.close(fd)


def digest(path: str) -> tuple[str, os.stat_result]:
    """SHA-256 of a regular file, in hexadecimal; and the file as it was after the last byte was read.

    Raises:
        OSError: it cannot be read, or is no regular file.
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
    """The file as it was after the last byte was read."""


def read_digested(path: str, whole: bool = False) -> Digested:
    """Read a regular file once, for its digest and its content; ``whole`` keeps all of it, however long.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer than any kernel's and to be kept whole.
    """
    fd, found = _opened(path)
    try:
        if whole and found.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        digest = hashlib.sha256()
        kept: list[bytes] = []
        for part in _parts(fd, found.st_size):
            digest.update(part)
            if whole or not kept:
                kept.append(part)
        return Digested(digest.hexdigest(), b"".join(kept), os.fstat(fd))
    finally:
        os.close(fd)


def _parts(fd: int, size: int) -> Iterator[bytes]:
    """The content of an open file of this size in parts of a MiB at most; all of it, if it has grown meanwhile."""
    done = 0
    while part := os.read(fd, min(size + 1, _PART_BYTES)):
        yield part
        done += len(part)
        if done == size < _PART_BYTES:
            return  # one byte more was asked for, and is not there: this is the end


def listing(directory: str) -> tuple[os.stat_result, dict[str, os.stat_result]]:
    """A directory itself, and what is in it by name, links not followed; what vanishes meanwhile is left out.

    Raises:
        OSError: it cannot be listed, or is no directory.
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
    """The sorted paths of what is in a directory; none where the directory is gone or may not be listed."""
    try:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))
    except OSError:
        return []


def names(directory: str) -> dict[str, bool]:
    """What is in a directory: each name, in alphabetical order, and whether it is a symbolic link.

    Raises:
        OSError: it cannot be listed, or is no directory.
    """
    fd = _open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as items:
            found = {item.name: item.is_symlink() for item in items}
        return dict(sorted(found.items()))
    finally:
        os.close(fd)


def _opened(path: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and the file as it is."""
    fd = _open(path, flags)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return fd, found
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _QUIET | _NO_ACCESS_TIME)
    except PermissionError:  # not ours: then it may be read only as everybody does
        return os.open(path, flags | _QUIET)
