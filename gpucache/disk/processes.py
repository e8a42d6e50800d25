"""Which process a number means: numbers are used again, so that a process is known by its number and its start.

All of this is about Linux's ``/proc``, and about processes in the pid namespace of the caller: a number of another
container means another process, or none.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Process: TypeAlias = tuple[int, int]
    """A process: its number, and its start in clock ticks since the boot, which no two processes of a number share."""

_PROC = "/proc"
_STATE, _START = 0, 19
"""Where state and start are among the fields of ``/proc/<pid>/stat`` behind the name of the process (proc(5))."""
_ENDED = ("Z", "X", "x")


def this_process() -> Process | None:
    """The calling process, which stays the same when it becomes another program; None where there is no ``/proc``."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process | None:
    """The running process of a number; None where there is none."""
    fields = _fields(pid)
    if fields is None or fields[_STATE] in _ENDED:
        return None
    return pid, int(fields[_START])


def is_running(process: Process) -> bool:
    """Whether this very process has not ended; one that has, and that its parent has not asked for, is no more."""
    return process_of(process[0]) == process


def pid_namespace() -> int:
    """A number of the namespace of this process's numbers, which differs between containers; 0 where none is told."""
    try:
        return os.stat(f"{_PROC}/self/ns/pid").st_ino
    except OSError:
        return 0


def _fields(pid: int) -> list[str] | None:
    try:
        with open(f"{_PROC}/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            _, _, rest = file.read().rpartition(") ")  # the name may hold anything
    except OSError:
        return None
    fields = rest.split()
    return fields if len(fields) > _START else None
