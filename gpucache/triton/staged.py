"""What one manager object has staged of a compile, and what is due when the object goes."""

from __future__ import annotations

import hashlib
import os
import shutil
import time

from gpucache.kernels.group import STANDALONE
from gpucache.store.key_lock import KeyLock
from gpucache.triton.location import Location


class Staged:
    """The files a manager object has put, in a private directory. Knows nothing of the object, which it outlives."""

    def __init__(self, place: Location, shareable: bool) -> None:
        self.place = place
        self.pid = os.getpid()
        self.began = time.monotonic()
        self.lock: KeyLock | None = None
        self.shareable = shareable
        self.staged: dict[str, tuple[str, str]] = {}
        self.contents: dict[str, bytes] = {}
        self.homes: set[str] = set()
        self.metadata = ""
        self.group: dict[str, str] | None = None
        self.published: str | None = None

    def stage(self, name: str, data: bytes) -> str:
        """Write a file where this process may write; its path.

        Raises:
            OSError: no place takes it.
        """
        if name.endswith(".json"):
            self.metadata = data.decode(errors="replace")
        usable = executable if name.endswith(".so") else _any
        path = self.place.staging.write(name, data, usable)
        self.homes.add(os.path.dirname(path))
        self.contents[name] = data
        self.staged[name] = (path, hashlib.sha256(data).hexdigest())
        return path

    def has(self, name: str, path: str) -> bool:
        """Whether the path is the one this object gave for the file."""
        return name in self.staged and self.staged[name][0] == path

    def rescue(self) -> None:
        """Write again what somebody removed meanwhile: Triton is about to read it. Nothing is kept in memory after."""
        for name, data in self.contents.items():
            path = self.staged[name][0]
            if self.group is not None and not os.path.exists(path) and self.group.get(name) == path:
                self.group[name] = self.place.staging.write(name, data, _any)
        self.contents.clear()

    def free(self) -> None:
        """Free the key's lock, if this compile holds it."""
        if self.lock is not None:
            self.lock.release()

    def finish(self) -> None:
        """The manager object is gone, and Triton has read everything: name what is published, drop what was staged.

        `CompiledKernel` (Triton >= 3.6) keeps the group's dictionary, so it is changed in place.
        """
        if self.pid != os.getpid():
            return  # a forked child's copy: the files and the lock are its parent's
        self.free()
        self.place.limit.enforce()
        if self.published is None and (
            self.group is not None or any(name.endswith(STANDALONE) for name in self.staged)
        ):
            return  # the only copy: it stays until this process ends
        for name in self.group or {}:
            if self.group is not None and self.has(name, self.group[name]):
                self.group[name] = f"{self.published}/{name}"
        for home in self.homes:
            shutil.rmtree(home, ignore_errors=True)


def executable(directory: str) -> bool:
    """Whether the nearest existing directory is on a file system that libraries can be loaded from."""
    while not os.path.isdir(directory) and os.path.dirname(directory) != directory:
        directory = os.path.dirname(directory)
    return not os.statvfs(directory).f_flag & getattr(os, "ST_NOEXEC", 0)


def _any(_: str) -> bool:
    return True
