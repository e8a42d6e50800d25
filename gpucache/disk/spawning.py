"""Starts a process that nothing of its starter holds, nor it anything of the starter's: no child, no terminal, no pipe.

`gpucache run` becomes the program. A child of it would be the program's, which knows nothing of it and may wait for any
child; a pipe that is kept open would let ``srun`` or a shell's pipe wait. `start_detached` is for such a command, which
has one thread. `start_beside` is for a process of a program's, in the middle of a kernel launch: no code runs in a copy
of that process, which may have any number of threads, handlers of `os.register_at_fork`, and gigabytes of page tables.

Limit: in a container whose first process becomes the program, orphans are the program's, and one that has ended stays
as a zombie until the container ends, as that of any daemon (``docker run --init`` mends that).
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

from gpucache.forks import after_fork, at_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

_MAIN = """if True:
    import sys
    if sys.path[0] == "":
        del sys.path[0]
    {first}
    sys.path.append({gpucache!r})
    from {module} import main
    main()
"""
"""What a Python executes. Not ``-m``, and not with the current directory first: whoever may write there, as anybody may
in ``/tmp``, would give this process its ``json``, though the program may never look there."""
_LEAVE_PARENT = "import os; os.fork() and os._exit(0)"
"""A line by which a process is nobody's child: the parent goes before anything else is imported."""
_MOST_DESCRIPTORS = 2**16
"""So many are closed where there is no ``/proc`` that tells which are open."""
_started: list[subprocess.Popen[bytes]] = []
"""Those of `start_beside` whose end this process has not seen yet: each takes milliseconds."""


def python_command(module: str, *words: str, first: str = "pass") -> list[str]:
    """The command by which a Python like this one calls the ``main`` of a module, with words as its arguments.

    ``first`` is a line that is executed before. Where that Python finds no gpucache by itself, it takes this one.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = _MAIN.format(first=first, gpucache=package, module=module)
    return [sys.executable, "-c", code, *words]


def start_detached(
    command: Sequence[str], environ: Mapping[str, str], kept: int | None = None
) -> int:
    """Start a command in a session of its own, with ``/dev/null`` for its stdio; return its number.

    Its parent is whoever adopts orphans here (init, or the first process of a container). Costs two forks, and does
    not wait for the command to come up. Of the descriptors of this process it has only ``kept``, by the same number.

    Raises:
        OSError: no process can be made.
    """
    readable, writable = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _fork_again(writable, command, environ, kept)
        os.close(writable)
        writable = -1
        told = os.read(readable, 32)
        with suppress(ChildProcessError):  # whoever started this process ignores SIGCHLD
            os.waitpid(child, 0)
    finally:
        os.close(readable)
        if writable >= 0:
            os.close(writable)
    if not told:
        raise OSError(errno.EAGAIN, "no process could be started")
    return int(told)


def start_beside(module: str, words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Start the ``main`` of a module in a session of its own, from a program that has threads. Does not wait for it.

    The new process is a child of this one for the milliseconds until it has forked itself, and is then whoever's adopts
    orphans. This process keeps a zombie until the next call, `reap` or its end.

    Raises:
        OSError: no process can be made, or there is no Python to execute.
    """
    import subprocess  # a process that asks no remote needs none

    reap()
    if not sys.executable or getattr(sys, "frozen", False):
        # A frozen program is its own executable, and would be started once more.
        raise OSError(errno.ENOENT, "it is not known which Python this process runs")
    command = python_command(module, *words, first=_LEAVE_PARENT)
    nowhere = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd="/",
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )
    except RuntimeError as error:  # the interpreter is ending (since CPython 3.12)
        raise OSError(errno.EAGAIN, str(error)) from None
    _started.append(process)


def reap(within_s: float = 0.0) -> None:
    """Take notice of those of `start_beside` that have ended, or end within so many seconds."""
    last = _started[-1:] if within_s else []
    for process in last:
        from subprocess import TimeoutExpired

        with suppress(TimeoutExpired):
            process.wait(within_s)
    _started[:] = [process for process in _started if process.poll() is None]


@at_exit
@after_fork
def _forget() -> None:
    """Ask for none of them any more: in a fork they are another's children; at the end they are left to the system."""
    for process in _started:
        process.returncode = 0  # or `subprocess` warns of it
    _started.clear()


def settle_in() -> None:
    """Have nothing of the settings by which the program that started this process has set up its own process.

    A program may have blocked SIGTERM, and its directory may be one that is removed, or unmounted, after its end.
    """
    import signal

    os.chdir("/")
    os.umask(0o077)
    with suppress(OSError):
        offer_to_the_killer()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def offer_to_the_killer() -> None:
    """Where memory runs out, the kernel kills this process and its children before the program (proc(5)).

    Raises:
        OSError: the kernel does not let it.
    """
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")


def _fork_again(
    writable: int, command: Sequence[str], environ: Mapping[str, str], kept: int | None
) -> None:
    """The first child: leave the session, fork what becomes the command, and end."""
    code = 1
    try:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            _become(command, environ, kept)
        os.write(writable, str(grandchild).encode())
        code = 0
    finally:
        os._exit(code)


def _become(command: Sequence[str], environ: Mapping[str, str], kept: int | None) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stdio in (0, 1, 2):
            os.dup2(nowhere, stdio)
        # Also what a launcher has handed down on purpose, such as mpirun's and srun's pipes.
        for fd in _open_descriptors():
            if fd != kept:
                with suppress(OSError):
                    os.close(fd)
        if kept is not None:
            os.set_inheritable(kept, True)
        with suppress(OSError):
            offer_to_the_killer()
        os.execve(command[0], list(command), dict(environ))
    finally:
        os._exit(127)


def _open_descriptors() -> list[int]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return list(range(3, _MOST_DESCRIPTORS))
    return [int(name) for name in names if int(name) > 2]
