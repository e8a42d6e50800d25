"""Which kernels are compiled on this node at the moment, for which device, by whom, and how many wait for each.

All is read from the files of the keys' locks and from Linux's table of locks; no lock is touched, since who looks
whether a lock is free holds it for an instant, and a rank that asks just then would wait.

Limits: a process that compiles without its key's lock (a cache that it may not write, a compile inside of another) is
not seen. While a holder asks a fallback or a remote for the kernel, it counts as one that compiles. What a gpucache
compiles that does not yet write its device directory into the lock is not seen.
"""

from __future__ import annotations

import calendar
import json
import os
import time
from contextlib import suppress

from gpucache.disk.door import HOLDER_BYTES, open_regular
from gpucache.disk.lock_place import LockPlace, open_lock_directory
from gpucache.disk.lock_table import held_by, held_locks
from gpucache.layout.keys import STORE_KEY
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.lock_table import Held

_LOCK = ".lock"
_MOST = 256
_ALIVE_S = 5.0
"""The holder of a key's lock touches the file every half second (`store.key_lock`)."""


class Compile(Value):
    """A compile that goes on."""

    key: str
    kernel: str
    directory: str
    """The device directory that it is for, as the counters name it; ``warm`` where it is for none."""
    pid: int
    """In the pid namespace of the process that compiles."""
    since: float
    """When the process has taken the key's lock, in seconds since the epoch; to the second."""
    waiting: int | None
    """How many processes wait for it; None where they cannot be seen, as those of other containers."""


def compiles(root: str) -> tuple[Compile, ...]:
    """The compiles of this node that go on for a root, those that began first before the others; 256 at most."""
    found = []
    with suppress(OSError):  # nobody has compiled yet, or the directory is another user's
        here = open_lock_directory(LockPlace(root).found())
        try:
            table = held_locks()
            for name in _names(here):
                one = _compile(here, name, table)
                if one is not None:
                    found.append(one)
        finally:
            os.close(here)
    found.sort(key=lambda one: (one.since, one.key))
    return tuple(found[:_MOST])


def _names(here: int) -> list[str]:
    """The names of the files of keys' locks."""
    names = []
    for name in os.listdir(here):
        if name.endswith(_LOCK) and STORE_KEY.fullmatch(name.removesuffix(_LOCK)):
            names.append(name)
    return names


def _compile(here: int, name: str, table: dict[int, list[Held]]) -> Compile | None:
    """The compile that a lock's file tells of; None where it tells of none, or of one whose process was killed."""
    try:
        fd, found = open_regular(name, here=here)
        try:
            said = json.loads(os.pread(fd, HOLDER_BYTES, 0))
        finally:
            os.close(fd)
        device = said["device"]
        pid = int(said["pid"])
        since = _seconds(said["since"])
        kernel = said["what"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # nobody holds it, or not for a compile, or somebody takes it at this moment
    if not isinstance(device, str) or not isinstance(kernel, str):
        return None
    held = held_by(found, pid, table)
    if held is None and not _is_beaten(found):
        return None
    waiting = None if held is None else len(held.waiting)
    return Compile(name.removesuffix(_LOCK), kernel, device, pid, since, waiting)


def _is_beaten(found: os.stat_result) -> bool:
    """Whether the holder of a lock has lately touched the file."""
    return abs(time.time() - found.st_mtime) < _ALIVE_S


def _seconds(since: str) -> float:
    """A time as `disk.locks.signature` writes it, in seconds since the epoch."""
    return float(calendar.timegm(time.strptime(since, "%Y-%m-%dT%H:%M:%SZ")))
