"""Open what another user may have made, each directory on the way and each file vetted by its open descriptor.

`vetting.vet` looks at names, and what changes after its look is not seen. Here what was vetted is what is read:
whoever owns a directory on the way may put something else in its place meanwhile, and it is not followed.
"""

from __future__ import annotations

import os

from gpucache.disk.door import open_regular
from gpucache.disk.vetting import (
    Trust,
    vet,
    vet_found_ancestor,
    vet_found_directory,
    vet_found_file,
)

_STEP = (
    # Linux's: a directory may be walked through that may not be listed
    getattr(os, "O_PATH", os.O_RDONLY)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | os.O_CLOEXEC
)


def open_directory(path: str, trust: Trust) -> int:
    """Open a directory to walk on from it; the descriptor, which the caller closes.

    Links on the way are followed where `vet` accepts them, and none that comes there after its look.

    Raises:
        FileNotFoundError: it is not there.
        UnsafeDirectoryError: it, or something on the way, is refused as by `vet`.
        ProvisionError: as `vet`.
        OSError: the disk does not answer, or a link came to be on the way.
    """
    vet(path, trust)
    straight = os.path.realpath(path)
    here = "/"
    fd = os.open(here, _STEP)
    try:
        for name in filter(None, straight.split("/")):
            vet_found_ancestor(here, os.fstat(fd), trust)
            here = os.path.join(here, name)
            fd = _exchanged(fd, name)
        vet_found_directory(here, os.fstat(fd), trust)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_child(parent: int, name: str, path: str, trust: Trust) -> int:
    """Open a directory that is in an open one and no link; the descriptor. ``path`` is what it is called in errors.

    Raises:
        FileNotFoundError: it is not there.
        UnsafeDirectoryError: it is refused, as by `vet`.
        OSError: the disk does not answer, or something else is there.
    """
    fd = os.open(name, _STEP, dir_fd=parent)
    try:
        vet_found_directory(path, os.fstat(fd), trust)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(parent: int, name: str, path: str, trust: Trust) -> tuple[int, os.stat_result]:
    """Open a regular file that is in an open directory; the descriptor, and its `os.stat`. ``path`` is as there.

    Reading it renews its access time, as far as its mount does that. Nobody waits for the writer of a FIFO.

    Raises:
        FileNotFoundError: it is not there.
        UnsafeDirectoryError: it is refused, as by `vetting.vet_file`.
        OSError: the disk does not answer, or it is no regular file.
    """
    fd, found = open_regular(name, here=parent)
    try:
        vet_found_file(path, found, trust)
    except BaseException:
        os.close(fd)
        raise
    return fd, found


def _exchanged(fd: int, name: str) -> int:
    """Open a directory in an open one, which is closed once that could be done."""
    inner = os.open(name, _STEP, dir_fd=fd)
    os.close(fd)
    return inner
