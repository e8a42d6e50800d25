"""Who holds and who awaits which ``flock``, as Linux tells in ``/proc/locks``: read without touching any lock.

Linux tells of the processes in the pid namespace of the reader alone: a lock that a process of another container holds
is not in the table, nor is a waiter of another container (`locks_translate_pid` in Linux's ``fs/locks.c``).
"""

from __future__ import annotations

import os

from gpucache.values import Value

_TABLE = "/proc/locks"
_MOST_LINES = 200_000
_HOLDS, _AWAITS = 8, 9
"""How many words the line of a holder has, and that of a waiter, which has ``->`` for its second (proc(5))."""


class Held(Value):
    """A lock that a process holds: by the number of that process, and by those of the processes that wait for it."""

    pid: int
    waiting: frozenset[int]


def held_locks() -> dict[int, list[Held]]:
    """The locks that ``flock`` holds, by the inode of the file; several files of other mounts may have one number.

    The number of the mount is left out: overlayfs and btrfs give files another one than ``stat`` tells. Empty where
    there is no such table.
    """
    holders: dict[str, tuple[str, int]] = {}
    waiters: dict[str, set[int]] = {}
    for words in _lines():
        if len(words) == _AWAITS and words[1] == "->":
            waiters.setdefault(words[0], set()).add(int(words[5]))
        elif len(words) == _HOLDS and words[1] == "FLOCK":
            inode = words[5].rpartition(":")[2]
            holders[words[0]] = (inode, int(words[4]))
    found: dict[int, list[Held]] = {}
    for number, (inode, pid) in holders.items():
        waiting = frozenset(waiters.get(number, ()))
        found.setdefault(int(inode), []).append(Held(pid, waiting))
    return found


def _lines() -> list[list[str]]:
    """The words of each line."""
    try:
        with open(_TABLE, encoding="ascii", errors="replace") as file:
            return [line.split() for line, _ in zip(file, range(_MOST_LINES), strict=False)]
    except OSError:
        return []


def held_by(found: os.stat_result, pid: int, table: dict[int, list[Held]]) -> Held | None:
    """What the table says of a lock file that this process is said to hold; None where that is not told."""
    for held in table.get(found.st_ino, ()):
        if held.pid == pid:
            return held
    return None
