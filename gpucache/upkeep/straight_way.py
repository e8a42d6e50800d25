"""The way to a root and what a pattern matches, step by step: no link is followed that somebody else could have made.

For root, who looks into directories of users: each step is taken in the directory that is open (``O_NOFOLLOW``).
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from dataclasses import dataclass

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # Linux's own limit (path_resolution(7))
_WILD = re.compile(r"[*?\[]")
MOST_MATCHES = 10_000
"""Of one directory: whoever made more has not made them to be pruned."""


def is_pattern(path: str) -> bool:
    """Whether a path has parts with ``*``, ``?`` or ``[``, and so stands for any number of paths."""
    return _WILD.search(path) is not None


@dataclass(slots=True)
class Way:
    """A directory that was walked to."""

    path: str
    """Without a link on it."""
    fd: int
    """Opened to be asked for itself only (``O_PATH``)."""
    above: list[tuple[str, os.stat_result]]
    """Each directory above, from ``/`` on."""


def walked(path: str) -> Way:
    """Walk to an absolute path. Links of root's, in directories in which nobody else writes, are followed.

    Raises:
        OSError: there is nothing, or no directory on the way; `errno.ELOOP` with the path of a link that is refused.
    """
    way = Way("/", os.open("/", _STEP | os.O_DIRECTORY), [])
    pending = path.split("/")[::-1]
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            raise OSError(errno.EINVAL, "a path with .. is not followed", path)
        joined = os.path.join(way.path, name)
        fd = _opened(way.fd, name, joined)
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            target = _target(way, fd, found, joined, links)
            pending += target.split("/")[::-1]
            if target.startswith("/"):
                os.close(way.fd)
                way = Way("/", os.open("/", _STEP | os.O_DIRECTORY), [])
            continue
        if not stat.S_ISDIR(found.st_mode):
            os.close(fd)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), joined)
        way.above.append((way.path, os.fstat(way.fd)))
        os.close(way.fd)
        way.path, way.fd = joined, fd
    return way


def _opened(fd: int, name: str, path: str) -> int:
    try:
        return os.open(name, _STEP, dir_fd=fd)
    except OSError as error:
        error.filename = path
        raise


def _target(way: Way, fd: int, found: os.stat_result, path: str, links: int) -> str:
    """Where a link leads that may be followed; ``fd`` is the link's, and is closed.

    Raises:
        OSError: it may not.
    """
    try:
        where = os.fstat(way.fd)
        trusted = {0, os.geteuid()}
        is_open = where.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not {found.st_uid, where.st_uid} <= trusted or is_open or links > _MOST_LINKS:
            raise OSError(errno.ELOOP, "a link that others could make is not followed", path)
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def matches(directory: str, rest: list[str]) -> list[tuple[str, list[str]]]:
    """What a pattern matches by its next part with a wildcard: each path, and the parts of the pattern behind.

    ``directory`` is where the parts of the pattern in ``rest`` begin. Links are never matched, nor are names that begin
    with a dot, unless the pattern's do. Without a wildcard it is the one path, if a directory is there.

    Raises:
        OSError: a directory may not be listed, or a link is on the way to it.
    """
    number = next((one for one, part in enumerate(rest) if is_pattern(part)), len(rest))
    where = os.path.join(directory, *rest[:number])
    try:
        way = walked(where)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        if number == len(rest):
            return [(way.path, [])]
        names = _listed(way.fd, rest[number])
    finally:
        os.close(way.fd)
    return [(os.path.join(way.path, name), rest[number + 1 :]) for name in names]


def _listed(fd: int, part: str) -> list[str]:
    """The names of the directories in an open one that a part of a pattern matches, sorted."""
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    found = []
    with os.scandir(listing) as items:
        for item in items:
            is_hidden = item.name.startswith(".") and not part.startswith(".")
            if is_hidden or not fnmatch.fnmatchcase(item.name, part):
                continue
            if item.is_dir(follow_symlinks=False):
                found.append(item.name)
            if len(found) > MOST_MATCHES:
                raise OSError(errno.E2BIG, f"more than {MOST_MATCHES} names match {part}")
    os.close(listing)
    return sorted(found)
