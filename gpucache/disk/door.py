"""The one door for reading what lies below a root, where anything may have been planted: a FIFO, a link, a huge file.

What is opened is a regular file, never a link's target; nobody waits for a writer; and of each kind of file no more is
read than such a file can hold.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

SAFELY = (
    os.O_CLOEXEC
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO is opened at once
    | getattr(os, "O_NOFOLLOW", 0)
)
"""What is added to the flags of every opening."""
DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | SAFELY
"""The flags by which a directory is opened that is no link."""

RECORD_BYTES = 4 * 2**20
COUNTERS_BYTES = 2**20
HOLDER_BYTES = 4096
KEPT_KEY_BYTES = 2**20
SEEN_NUMBERS_BYTES = 2**20
GROUP_FILE_BYTES = 2**20
SETTINGS_BYTES = 2**16
"""A file of settings, or its parsed form, has a line or two for each."""
METADATA_BYTES = 2**20
"""Triton's metadata have a few KB. Of each byte of JSON 27 of Python's may be made."""
HASHED_BYTES = 2**30
"""No file of a kernel is longer: a sparse one of exbibytes would be hashed for ever."""


def open_regular(
    path: str, flags: int = os.O_RDONLY, here: int | None = None
) -> tuple[int, os.stat_result]:
    """Open a regular file; return its descriptor, and its `os.stat`.

    ``here`` is a descriptor of the directory from which a relative path leads.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    fd = os.open(path, flags | SAFELY, dir_fd=here)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd, found


def has_name(fd: int, name: str, here: int) -> bool:
    """Whether an open file still has a name in an open directory, where another process may have removed it."""
    try:
        named = os.stat(name, dir_fd=here, follow_symlinks=False)
        return os.path.samestat(os.fstat(fd), named)
    except OSError:
        return False


def opener(path: str, flags: int) -> int:
    """Open a regular file for `open`, which takes this as its ``opener``.

    Raises:
        OSError: as `open_regular`.
    """
    return open_regular(path, flags)[0]


def read_limited(path: str, most_bytes: int) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: the file cannot be read, is no regular file, or is longer than ``most_bytes``.
    """
    with open(path, "rb", opener=opener) as file:
        data = read_some(file, most_bytes + 1)
    if len(data) > most_bytes:
        message = os.strerror(errno.EFBIG)
        raise OSError(errno.EFBIG, message, path)
    return data


def read_head(path: str, most_bytes: int) -> bytes:
    """Read the first bytes of a regular file, as many as it has of ``most_bytes``.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    with open(path, "rb", opener=opener) as file:
        return read_some(file, most_bytes)


def read_some(file: BinaryIO, most_bytes: int = -1) -> bytes:
    """Read so many bytes of a file that was opened by `opener`, or all.

    Raises:
        OSError: the file cannot be read, or not now: of a file opened with ``O_NONBLOCK`` Python then gives None.
    """
    data: bytes | None = file.read(most_bytes)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return data
