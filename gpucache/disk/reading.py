"""Read a cache without a trace: no link is followed, no FIFO waited for, no access time renewed where that is allowed.

An access time is all that tells of the last use of what stock Triton cached.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

_QUIET = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_MOST_BYTES = 256 * 2**20
_NO_ACCESS_TIME = getattr(os, "O_NOATIME", 0)  # Linux's


def quietly(path: str, flags: int) -> int:
    """An opener for `open`, for regular files.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    fd = _open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def read(path: str) -> bytes:
    """The content of a regular file of a kernel.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer than any kernel's.
    """
    with open(path, "rb", opener=quietly) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read()


def digest(path: str) -> tuple[str, os.stat_result]:
    """SHA-256 of a regular file, in hexadecimal; and the file as it was after the last byte was read.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    found = hashlib.sha256()
    with open(path, "rb", buffering=0, opener=quietly) as file:
        while part := file.read(1 << 20):
            found.update(part)
        return found.hexdigest(), os.fstat(file.fileno())


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


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _QUIET | _NO_ACCESS_TIME)
    except PermissionError:  # not ours: then it may be read only as everybody does
        return os.open(path, flags | _QUIET)
