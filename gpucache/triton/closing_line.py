"""The line with which a run ends on a terminal: what was compiled here, and what was had without a compile.

`gpucache run` has become the program, so that only the program's own processes can say it. Of them the one does whose
local rank is 0, or that has no rank, and that no other Python process has made; a job has one such process, mostly. It
tells its own figures. A process that is killed, or ends by `os._exit`, says nothing.
"""

from __future__ import annotations

import atexit
import os
import sys

from gpucache import environment
from gpucache.directories.local_rank import local_rank
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
_COMPILE_WORKER = os.path.join("_inductor", "compile_worker", "__main__.py")
"""How the path of the program ends that torch starts to compile (`_inductor/compile_worker/subproc_pool.py`, 2.13)."""
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
        if not _cached:
            atexit.register(_say, os.getpid(), rank is not None)
        _cached.append(_Cached(location, _why_not_shared(location, environ)))
    except Exception:
        return


def closing_line(values: Mapping[str, float], in_ranks: bool, not_shared: str | None) -> str | None:
    """The line; None where no kernel was asked for and nothing kept them from being shared.

    ``values`` are the counters of a process by name. ``in_ranks`` is whether the process is one of several, so that
    what it took from the store another rank has compiled, now or in an earlier run. The levels are those of `stats`.
    """
    by_level = levels(values)
    parts = []
    if any(level.hits for level in by_level.values()):
        whose = "other ranks" if in_ranks else "the store"
        parts.append(f"{by_level['compiled'].hits} compiled here")
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
        if pid != os.getpid() or not sys.stderr.isatty():
            return
        values: dict[str, float] = {}
        not_shared = None
        for cached in _cached:
            not_shared = not_shared or cached.not_shared
            for name, value in cached.location.stats.of_process.items():
                values[name] = values.get(name, 0) + value
        line = closing_line(values, in_ranks, not_shared)
        if line is not None:
            sys.stderr.write(printable(line) + "\n")
            sys.stderr.flush()
    except Exception:
        return  # stderr is closed, or its terminal gone: there is nobody to tell


def _is_made_by_python() -> bool:
    """Whether another Python process has made this one to work for it, which then says the line, if it has kernels.

    That is a process of `multiprocessing`, one of torch's that compile, and a fork: of the processes that a shell or a
    launcher starts none has its parent's words.
    """
    program = getattr(sys, "argv", [""])[:1]  # which an embedded Python may lack
    if program and program[0].endswith(_COMPILE_WORKER):
        return True
    of_pools = sys.modules.get("multiprocessing.process")
    if of_pools is not None and of_pools.parent_process() is not None:
        return True
    own = _command_line("self")
    return bool(own) and own == _command_line(os.getppid())


def _command_line(pid: int | str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
