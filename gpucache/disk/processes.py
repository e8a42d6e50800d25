"""Which process a number means: numbers are used again, so that a process is known by its number and its start.

All of this is about Linux's ``/proc``, and about processes in the pid namespace of the caller: a number of another
container means another process, or none.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Process: TypeAlias = tuple[int, int]
    """A process: its number, and its start in clock ticks since the boot, which no two processes of a number share."""

_PROC = "/proc"
_STATE, _START = 0, 19
"""Where state and start are among the fields of ``/proc/<pid>/stat`` behind the name of the process (proc(5))."""
_LOOK_S = 0.5
"""How often processes are looked at of whose end the kernel does not tell."""
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


def wait_for_any(processes: Sequence[Process], most_s: float) -> None:
    """Sleep until one of these processes has ended, at most so many seconds."""
    import select

    ended = select.poll()
    descriptors = []
    try:
        for process in processes:
            with suppress(OSError, AttributeError):  # it has ended; an older kernel
                descriptors.append(os.pidfd_open(process[0]))
                ended.register(descriptors[-1], select.POLLIN)
        is_told = len(descriptors) == len(processes)
        step_s = most_s if is_told else _LOOK_S
        end = time.monotonic() + most_s
        # Asked again once the descriptors are open: a number may have become another process's before.
        while all(map(is_running, processes)) and time.monotonic() < end:
            if ended.poll(step_s * 1000):
                return
    finally:
        for fd in descriptors:
            os.close(fd)


def pid_namespace() -> int:
    """A number of the namespace of this process's numbers, which differs between containers; 0 where none is told."""
    try:
        return os.stat(f"{_PROC}/self/ns/pid").st_ino
    except OSError:
        return 0


def is_open(found: os.stat_result) -> bool | None:
    """Whether a process of this pid namespace has a file open; None where processes are hidden from this user.

    Those of other users are, but from root; what other nodes and containers have open is never seen.
    """
    is_hidden = False
    try:
        numbers = [name for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return None
    for number in numbers:
        answer = _has_open(f"{_PROC}/{number}/fd", found)
        if answer:
            return True
        is_hidden |= answer is None
    return None if is_hidden else False


def _has_open(directory: str, found: os.stat_result) -> bool | None:
    try:
        descriptors = os.listdir(directory)
    except FileNotFoundError:
        return False  # the process has ended
    except OSError:
        return None
    for descriptor in descriptors:
        with suppress(OSError):
            if os.path.samestat(os.stat(f"{directory}/{descriptor}"), found):
                return True
    return False


def _fields(pid: int) -> list[str] | None:
    try:
        with open(f"{_PROC}/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            _, _, rest = file.read().rpartition(") ")  # the name may hold anything
    except OSError:
        return None
    fields = rest.split()
    return fields if len(fields) > _START else None
