"""Forks the processes of the pool: each is a child of the scheduler, whoever has forked it, and ends with that.

An importer forks a process that forks the worker and ends at once; the kernel then gives the worker to the scheduler,
which has asked for orphans (prctl(2), ``PR_SET_CHILD_SUBREAPER``). So one process waits for all of them, knows how each
has ended, and may kill by number: no number is used again before the scheduler has waited for its process. Only now
does the worker ask to be killed when its parent ends (``PR_SET_PDEATHSIG``), which the kernel does when the *thread*
that is the parent ends: the scheduler has only one. Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import time
import warnings
from contextlib import suppress

_SET_PDEATHSIG = 1
_SET_NAME = 15
_SET_CHILD_SUBREAPER = 36
"""Numbers of operations of prctl(2), from ``linux/prctl.h``."""


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends.

    Raises:
        OSError: this system cannot do that.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, whose number this is. Where that has ended, this process ends now.

    Raises:
        OSError: this system cannot do that.
    """
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)


def wake_with_parent() -> None:
    """Have this process go on once its parent ends, should it be stopped then: it is to end what is below it.

    Raises:
        OSError: this system cannot do that.
    """
    _prctl(_SET_PDEATHSIG, signal.SIGCONT)


def take_name(name: str) -> None:
    """Have ``ps`` and ``top`` show a name of at most 15 letters for this process."""
    with suppress(OSError):
        _prctl(_SET_NAME, ctypes.create_string_buffer(name.encode()))


def fork_for(scheduler: int) -> bool:
    """Fork a process whose parent is the scheduler, whose number this is. True in the new process, False in this one.

    Raises:
        OSError: no process can be made.
    """
    with suppress(OSError):
        _prctl(_SET_CHILD_SUBREAPER, 0)  # a module may have asked for orphans as well
    with warnings.catch_warnings():
        # Python 3.12 warns where a module has started threads. What a lock of theirs stops is killed at its time limit.
        warnings.simplefilter("ignore", DeprecationWarning)
        between = os.fork()
        if between:
            _wait_for(between)
            return False
        between = os.getpid()
        _fork_and_end()
    while os.getppid() == between:
        time.sleep(0.0005)
    end_with(scheduler)
    return True


def _fork_and_end() -> None:
    """Fork; returns in the new process only."""
    try:
        if os.fork():
            os._exit(0)
    except OSError as error:
        os._exit(error.errno or errno.EAGAIN)


def _wait_for(between: int) -> None:
    """Wait for the process between.

    Raises:
        OSError: it could not fork.
    """
    try:
        _, status = os.waitpid(between, 0)
    except ChildProcessError:  # a module ignores SIGCHLD
        return
    code = os.waitstatus_to_exitcode(status)
    if code:
        number = code if code > 0 else errno.EAGAIN
        raise OSError(number, os.strerror(number))


def leave_terminal_and_files(output: int) -> None:
    """Lead a process group; read nothing; and write what anybody prints to this descriptor, which is closed.

    A module may print anything or ask for input, and nothing of that is to reach the messages or the caller's terminal.
    """
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, output, output)):
        os.dup2(descriptor, number)
    for descriptor in {nothing, output} - {0, 1, 2}:
        os.close(descriptor)


def keep_stdio_open() -> None:
    """Open ``/dev/null`` for stdin, stdout and stderr where these are closed.

    The next descriptor would have such a number, and be lost as something is put in the place of stdio.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def above_stdio(descriptor: int) -> int:
    """The same open file by a number above those of stdio, which a process may have been started without.

    Raises:
        OSError: this process may open no more files. The descriptor is closed.
    """
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def close_others(kept: set[int]) -> None:
    """Close every descriptor of this process but those of stdin, stdout and stderr, and the ones named."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # that of the listing is closed by now
                os.close(descriptor)


def children_of_this_thread() -> list[int]:
    """The numbers of this thread's children; empty where the kernel does not tell (``CONFIG_PROC_CHILDREN``)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _prctl(operation: int, value: int | ctypes.Array[ctypes.c_char]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    if libc.prctl(operation, argument, zero, zero, zero):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {operation}: {os.strerror(number)}")
