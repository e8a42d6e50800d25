"""The line with which a run ends on a terminal: what was compiled here, and what was had without a compile.

`gpucache run` has become the program, so that only the program's own processes can say it. Of them the one does whose
local rank is 0, or that has no rank, and that no other Python process has made; a job has one such process, mostly. It
tells its own figures. A process that is killed, or ends by `os._exit`, says nothing; nor does one whose log is JSON,
since who reads that wants an object a line, nor one that would have to wait for its terminal.
"""

from __future__ import annotations

import atexit
import os
import sys

from gpucache import environment
from gpucache.directories.local_rank import local_rank, tasks_here
from gpucache.disk.fresh import fresh_part
from gpucache.escapes import printable
from gpucache.store.levels import levels
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.store.levels import LevelName
    from gpucache.triton.location import Location

_LEAST_SAVED_S = 0.5
_STDERR = 2
_OF_TORCH = ("_inductor/compile_worker/__main__.py", "_inductor/__autotune_main__.py")
"""How the paths of the programs end that torch starts to compile and to measure kernels (`subproc_pool.py` and
`autotune_process.py` of 2.13)."""
_FLAGS = 6
"""Where the flags are among the fields of ``/proc/self/stat`` behind the name of the process (proc(5))."""
_PF_FORKNOEXEC = 0x40
"""The flag of a process that has executed no program since its fork (Linux's ``include/linux/sched.h``)."""
_FROM: tuple[tuple[LevelName, str], ...] = (
    ("fallback", "from the fallback"),
    ("remote", "from the remote"),
    ("own", "found in its own directory"),
)


class _Cached(Value):
    """Where kernels of this process are cached, and why they are not shared; None if they are."""

    location: Location
    not_shared: str | None


_cached: list[_Cached] = []


def say_at_exit(location: Location, environ: Mapping[str, str]) -> None:
    """Have the line said at the end of this process, if this is the process to say it; once, for all its locations.

    Never raises: what cannot be told is no reason for a kernel not to launch.
    """
    try:
        rank, _ = local_rank(environ)
        if rank or environment.DISABLE.read_or_default(environ) or _is_made_by_python():
            return
        if environment.LOG_FORMAT.read_or_default(environ) == "json":
            return
        if not _cached:
            in_ranks = rank is not None and tasks_here(environ) != 1
            atexit.register(_say, os.getpid(), in_ranks)
        _cached.append(_Cached(location, _why_not_shared(location, environ)))
    except Exception:
        return


def closing_line(
    values: Mapping[str, float], in_ranks: bool, not_shared: str | None, requires_hit: bool = False
) -> str | None:
    """The line; None where no kernel was asked for and nothing kept them from being shared.

    ``values`` are the counters of a process by name. ``in_ranks`` is whether the process is one of several, so that
    what it took from the store another rank has compiled, now or in an earlier run. ``requires_hit`` is whether a miss
    was an error, and no compile. The levels are those of `stats`.
    """
    by_level = levels(values)
    parts = []
    if any(level.hits for level in by_level.values()):
        whose = "other ranks" if in_ranks else "the store"
        missed = by_level["compiled"].hits
        not_here = f"not here ({environment.REQUIRE_HIT})" if requires_hit else "compiled here"
        parts.append(f"{missed} {not_here}")
        parts.append(f"{by_level['store'].hits} taken from {whose}")
    for name, what in _FROM:
        if by_level[name].hits:
            parts.append(f"{by_level[name].hits} {what}")
    saved_s = values.get("saved_s", 0)
    if saved_s >= _LEAST_SAVED_S:
        parts.append(f"{saved_s:.0f} s of compiling saved")
    failures = by_level["store"].errors
    if failures:
        parts.append(f"alone after {failures} failures (`gpucache doctor` looks for the cause)")
    if not_shared is not None:
        parts.append(f"nothing shared: {not_shared}")
    return f"gpucache: {', '.join(parts)}" if parts else None


def _why_not_shared(location: Location, environ: Mapping[str, str]) -> str | None:
    """Why this process shares nothing; None where it does."""
    for off in environment.turned_off(environ):
        return f"{off.name}={off.value}"
    if location.mode == "shared":
        return None
    part = fresh_part(location.directory, location.root)
    if location.mode == "stock" and part is not None:
        return f"{location.directory} is fresh on purpose ({environment.SHARE}=1 shares it)"
    return f"{location.root} cannot be used (`gpucache doctor` tells why)"


def _say(pid: int, in_ranks: bool) -> None:
    """Say the line, unless this is a fork of the process that was to say it. Never raises."""
    try:
        # Another file may have got the number of a closed stderr.
        if pid != os.getpid() or not sys.stderr.isatty() or not os.isatty(_STDERR):
            return
        values: dict[str, float] = {}
        not_shared = None
        requires_hit = False
        for cached in _cached:
            requires_hit = requires_hit or cached.location.require_hit
            not_shared = not_shared or cached.not_shared
            for name, value in cached.location.stats.of_process.items():
                values[name] = values.get(name, 0) + value
        line = closing_line(values, in_ranks, not_shared, requires_hit)
        if line is not None:
            sys.stderr.flush()
            _write(printable(line) + "\n")
    except Exception:
        return  # stderr is closed, or its terminal gone: there is nobody to tell


def _write(line: str) -> None:
    """Write to the terminal, unless this process would have to wait for it, or be stopped.

    Not by way of `sys.stderr`: what that could not write it tries again at the end of Python, which then ends with 120.
    """
    import select

    terminal = select.poll()
    terminal.register(_STDERR, select.POLLOUT)
    is_ready = (_STDERR, select.POLLOUT) in terminal.poll(0)
    if is_ready and not _stops_who_writes():
        os.write(_STDERR, line.encode(errors="backslashreplace"))


def _stops_who_writes() -> bool:
    """Whether this process is in the background of a terminal that is set to stop whoever writes to it from there."""
    import termios

    if not termios.tcgetattr(_STDERR)[3] & termios.TOSTOP:
        return False
    try:
        return os.tcgetpgrp(_STDERR) != os.getpgrp()
    except OSError:
        return False  # the terminal of another session stops nobody


def _is_made_by_python() -> bool:
    """Whether another Python process has made this one to work for it, which then says the line, if it has kernels.

    That is a process of `multiprocessing`, one of torch's that compile or measure, and a fork.
    """
    program = getattr(sys, "argv", [""])[:1]  # which an embedded Python may lack
    if program and program[0].endswith(_OF_TORCH):
        return True
    of_pools = sys.modules.get("multiprocessing.process")
    if of_pools is not None and of_pools.parent_process() is not None:
        return True
    return _is_fork()


def _is_fork() -> bool:
    """Whether this process is a copy of another one, as a shell or a launcher makes none; False where that is not told.

    Also where the other one has ended, as that of a daemon.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return bool(int(fields[_FLAGS]) & _PF_FORKNOEXEC)
    except (OSError, ValueError, IndexError):
        return False
