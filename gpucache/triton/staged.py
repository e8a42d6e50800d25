"""What one manager object has staged of a compile, and what is due when the object goes."""

from __future__ import annotations

import hashlib
import os
import time
import weakref

from gpucache.disk.files import remove_tree
from gpucache.disk.fitness import statvfs
from gpucache.forks import at_exit
from gpucache.kernels.group import STANDALONE
from gpucache.store.names import stored_name
from gpucache.triton.location import Location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from gpucache.store.key_lock import KeyLock

    Why = Literal["absent", "damaged", "busy", "failed", "private", "override", "always-compile"]
    """Why a kernel is compiled, in one word."""


class Staged:
    """The files a manager object has put, in a private directory.

    Holds no reference to the manager object, whose finalizer calls `finish`.
    """

    def __init__(self, location: Location, shareable: bool) -> None:
        self.location = location
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
        """Write a file where this process may write; its path. ``name`` is that in an entry (`stored_name`).

        Raises:
            OSError: no place takes it.
        """
        if name.endswith(".json"):
            self.metadata = data.decode(errors="replace")
        path = self._written(name, data)
        self.homes.add(os.path.dirname(path))
        self.contents[name] = data
        digest = hashlib.sha256(data).hexdigest()
        self.staged[name] = (path, digest)
        return path

    def path_of(self, name: str) -> str | None:
        """The path at which the file that Triton calls so is staged; None if it is not."""
        staged = self.staged.get(stored_name(name))
        return None if staged is None else staged[0]

    def rescue(self) -> None:
        """Write the staged files again that were removed meanwhile, since Triton is about to read them.

        The contents are not kept in memory any longer.
        """
        group = self.group or {}
        for name, path in group.items():
            if self.path_of(name) == path and not os.path.exists(path):
                group[name] = self._written(stored_name(name), self.contents[stored_name(name)])
        self.contents.clear()

    def _written(self, name: str, data: bytes) -> str:
        """Write a file; its path.

        Raises:
            OSError: no place takes it.
        """
        usable = executable if name.endswith(".so") else _any
        return self.location.staging.write(name, data, usable)

    def free(self) -> None:
        """Free the key's lock, if this compile holds it."""
        if self.lock is not None:
            self.lock.release()

    def finish(self) -> None:
        """Name the published files and drop the staged ones, once the manager object is gone.

        By then Triton has read everything.
        `CompiledKernel` (Triton >= 3.6) keeps the group's dictionary, so it is changed in place.
        """
        if self.pid != os.getpid():
            return  # a forked child's copy: the files and the lock are its parent's
        self.free()
        self.location.limit.enforce()
        standalone = any(name.endswith(STANDALONE) for name in self.staged)
        if self.published is None and (self.group is not None or standalone):
            return  # the only copy: it stays until this process ends
        group = self.group or {}
        for name, path in group.items():
            if self.path_of(name) == path:
                group[name] = f"{self.published}/{stored_name(name)}"
        for home in self.homes:
            remove_tree(home)


_unfinished: dict[weakref.ref[object], Staged] = {}
"""By a reference to the manager object: what it has staged, until that object goes."""


def finish_with(manager: object, staged: Staged) -> None:
    """Have `Staged.finish` called once a manager object has gone, or at exit.

    `weakref.finalize` would do so, but walks through its list at exit while a daemon thread may still compile, and so
    add to it: then it raises, and finishes nothing (CPython 3.10 to 3.14, `Lib/weakref.py` `_select_for_exit`).
    """
    _unfinished[weakref.ref(manager, _finish)] = staged


def _finish(gone: weakref.ref[object]) -> None:
    staged = _unfinished.pop(gone, None)
    if staged is None:
        return
    try:
        staged.finish()
    except Exception as error:  # nobody is above who could catch it
        staged.location.degraded("staged files cannot be removed", error)


def _finish_all() -> None:
    # Those of now: a daemon thread may take away, and may add without end.
    for gone in tuple(_unfinished):
        _finish(gone)


at_exit(_finish_all)


def executable(directory: str) -> bool:
    """Whether the nearest existing directory is on a file system that libraries can be loaded from."""
    parent = os.path.dirname(directory)
    while not os.path.isdir(directory) and parent != directory:
        directory, parent = parent, os.path.dirname(parent)
    disk = statvfs(directory)
    no_exec = getattr(os, "ST_NOEXEC", 0)
    return disk is None or not disk.f_flag & no_exec


def _any(_: str) -> bool:
    """Accept any directory: the file is only read."""
    return True
