"""The process that `gpucache run --warm` starts: it compiles what recipes say as long as a program needs it.

It ends when all is compiled, or when the last of the programs that have registered is gone. Its workers end with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from contextlib import suppress

from gpucache import configuration
from gpucache.disk.processes import is_running, this_process
from gpucache.disk.vetting import Trust, vet
from gpucache.errors import GpuCacheError
from gpucache.warm.ahead.programs import Programs, opened
from gpucache.warm.pool.dead_locks import remove_dead_locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from gpucache.disk.processes import Process
    from gpucache.warm.pool.pool import Pool

_LOCK_S = 10.0
_END_S = 1.0
_LOOK_S = 0.25
"""How often programs are looked at, and whether all is compiled. That a program has ended is heard at once where the
kernel gives descriptors of processes (Linux 5.3)."""


def main(words: Sequence[str] | None = None) -> None:
    """Compile what the JSON object says that is the only word (`ahead.compile_ahead`). Does not return."""
    (said,) = sys.argv[1:] if words is None else words
    asked = json.loads(said)
    work = _Work(asked)
    _end_on_signals(work.done)
    work.thread.start()
    code = 1
    try:
        watch(asked["state"], work.done)
        work.end()
        remove_dead_locks(asked["root"])
        code = 0
    finally:
        # Whatever threads and finalizers there are: what is left of the pool ends when its pipes are closed.
        os._exit(code)


def _end_on_signals(done: threading.Event) -> None:
    """Have this process end in order where it is asked to, as a job is by ``scancel``, so that no lock file stays."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has SIGHUP ignored
            signal.signal(number, lambda *_: done.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})


class _Work:
    """The compile of everything, in a thread of its own."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(asked,), daemon=True)
        self._pool: Pool | None = None
        self._is_over = False

    def end(self) -> None:
        """Have the pool end all its processes, and wait for that for a moment."""
        self._is_over = True
        if self._pool is not None:
            self._pool.stop()
        self.thread.join(_END_S)

    def _run(self, asked: dict[str, Any]) -> None:
        try:
            _compile_all(asked, self._started)
        except (GpuCacheError, OSError):
            pass  # nobody reads what this process could say; the program compiles itself what it needs
        finally:
            self.done.set()

    def _started(self, pool: Pool) -> None:
        self._pool = pool
        if self._is_over:
            pool.stop()


def watch(state: str, done: threading.Event) -> None:
    """Return once ``done`` is set or all programs are gone that have registered in the file ``state``.

    Then the file is removed, under its lock: a program that registers later finds no pool, and starts one.
    """
    programs: tuple[Process, ...] = ()
    this = this_process()
    while True:
        with opened(state, _LOCK_S) as file:
            found = file.read().running()
            is_ours = found.pool in (None, this)
            # The file may have been swept. Then another pool may have begun, and those that it serves are its own.
            known = list(filter(is_running, programs))
            if is_ours:
                known += found.programs
            programs = tuple(dict.fromkeys(known))
            if done.is_set() or not programs:
                if is_ours:
                    file.remove()
                return
            if found.pool is None:
                file.write(Programs(this, programs))
        _wait_for(programs, done)


def _wait_for(programs: Sequence[Process], done: threading.Event) -> None:
    """Sleep until one of these programs has ended or ``done`` is set."""
    ended = select.poll()
    descriptors = []
    try:
        for process in programs:
            fd = _descriptor(process)
            if fd is not None:
                descriptors.append(fd)
                ended.register(fd, select.POLLIN)
        while not done.is_set():
            if ended.poll(_LOOK_S * 1000) or not all(map(is_running, programs)):
                return
    finally:
        for fd in descriptors:
            os.close(fd)


def _descriptor(process: Process) -> int | None:
    """A descriptor by which a process's end is heard at once; None where it is gone or there is no such call."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(process[0])
    return None


def _add_current_directory() -> None:
    """Have modules looked for in the current directory last, where nobody else may write.

    A command such as a script of a shell may start ``python -m`` there, which looks there first.
    """
    with suppress(GpuCacheError, OSError):
        here = os.getcwd()
        vet(here, Trust.parse(configuration.environ()))
        sys.path.append(here)


def _compile_all(asked: dict[str, Any], started: Callable[[Pool], None]) -> None:
    from gpucache.warm.ahead.compile_files import compile_files

    sys.path[0:0] = asked["search"]
    _add_current_directory()
    compile_files(
        asked["paths"],
        asked["what"],
        asked["root"],
        asked["targets"],
        jobs=asked["jobs"],
        started=started,
    )
