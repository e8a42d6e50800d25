"""Starts a process that nothing of its starter holds, nor it anything of the starter's: no child, no terminal, no pipe.

`gpucache run` becomes the program. A child of it would be the program's, which knows nothing of it and may wait for any
child; a pipe that is kept open would let ``srun`` or a shell's pipe wait.

Limit: in a container whose first process becomes the program, orphans are the program's, and one that has ended stays
as a zombie until the container ends, as that of any daemon (``docker run --init`` mends that).
"""

from __future__ import annotations

import os
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def start_detached(command: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Start a command in a session of its own, with ``/dev/null`` for its stdio; its number, None where that failed.

    Its parent is whoever adopts orphans here (init, or the first process of a container). Costs two forks, and does
    not wait for the command to come up.

    Raises:
        OSError: no process can be made.
    """
    readable, writable = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _fork_again(writable, command, environ)
        os.close(writable)
        writable = -1
        told = os.read(readable, 32)
        with suppress(ChildProcessError):  # whoever started this process ignores SIGCHLD
            os.waitpid(child, 0)
    finally:
        os.close(readable)
        if writable >= 0:
            os.close(writable)
    return int(told) if told else None


def _fork_again(writable: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
    """The first child: leave the session, fork what becomes the command, and end."""
    code = 1
    try:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            _become(command, environ)
        os.write(writable, str(grandchild).encode())
        code = 0
    finally:
        os._exit(code)


def _become(command: Sequence[str], environ: Mapping[str, str]) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stdio in (0, 1, 2):
            os.dup2(nowhere, stdio)
        # Also what a launcher has handed down on purpose, such as mpirun's and srun's pipes.
        for fd in _open_descriptors():
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            _offer_to_the_killer()
        os.execve(command[0], list(command), dict(environ))
    finally:
        os._exit(127)


def _open_descriptors() -> list[int]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return list(range(3, 256))
    return [int(name) for name in names if int(name) > 2]


def _offer_to_the_killer() -> None:
    """Where memory runs out, the kernel kills this process and its children before the program (proc(5))."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("500")
