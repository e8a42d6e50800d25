"""Whether the holder of a key's lock gets processor time at all: a beat of its lock alone does not tell that.

The thread that beats needs hardly any time, so that a holder beats on which has been given none for its compile, as one
at nice 19 beside busy ranks (0.06 s in 8 s were seen). Linux accounts for each thread how long it ran and how long it
was ready to run and did not (``/proc/<pid>/task/<tid>/schedstat``: nanoseconds of both). A holder that sleeps, as one
that waits for a disk, is not ready, and counts as alive while it beats.

Limits: threads of the holder that compute something else count as its compile. Where the kernel does not account
(``CONFIG_SCHED_INFO``), or the holder is of another pid namespace, nothing is found.
"""

from __future__ import annotations

import json
import os

from gpucache.disk.door import HOLDER_BYTES, read_limited
from gpucache.disk.processes import is_running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpucache.disk.processes import Process

_LEAST_READY = 0.5
"""A starved holder was ready to run, and did not, for at least this share of the time."""
_MOST_RUN = 0.02
"""A starved holder ran for at most this share of the time for which it was ready: fifty others of its priority would
have to share its core. One at nice 19 beside one at nice 0 gets 0.014 (``sched_prio_to_weight`` of Linux)."""
_MOST_PROCESSES = 64
_NS = 1e9


class HolderLife:
    """Watches the holder of one lock for one waiter."""

    def __init__(self, path: str) -> None:
        """``path`` is the lock's file."""
        self._path = path
        self._holder: Process | None = None
        self._since = 0.0
        self._ran = self._ready = 0

    def starves(self, now: float, window_s: float) -> bool:
        """Whether the holder was starved for the last ``window_s``; to be asked again and again.

        ``now`` is on the clock of `time.monotonic`.
        """
        holder = _holder(self._path)
        if holder is None or holder != self._holder:
            self._begin(holder, now)
            return False
        ran, ready = _times(holder[0])
        # A process of the compile, such as ptxas, has ended.
        is_other = ran < self._ran or ready < self._ready
        if is_other:
            self._begin(holder, now)
        if now - self._since < window_s:
            return False
        ran, ready = ran - self._ran, ready - self._ready
        self._begin(holder, now)
        return ready > _LEAST_READY * window_s * _NS and ran < _MOST_RUN * ready

    def _begin(self, holder: Process | None, now: float) -> None:
        self._holder, self._since = holder, now
        if holder is not None:
            self._ran, self._ready = _times(holder[0])


def _holder(path: str) -> Process | None:
    """The process that holds a lock, if it is one of this pid namespace; the file says its number and start."""
    try:
        said = json.loads(read_limited(path, HOLDER_BYTES))
        process = (int(said["pid"]), int(said["start"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return process if is_running(process) else None


def _times(pid: int) -> tuple[int, int]:
    """How long a process and all below it ran, and were ready and did not, in nanoseconds."""
    ran = ready = 0
    for process in _below(pid):
        for task in _listed(f"/proc/{process}/task"):
            words = _read(f"/proc/{process}/task/{task}/schedstat").split()
            if len(words) >= 2:
                ran += int(words[0])
                ready += int(words[1])
    return ran, ready


def _below(pid: int) -> Iterator[int]:
    """A process, its children and theirs."""
    waiting = [pid]
    for _ in range(_MOST_PROCESSES):
        if not waiting:
            return
        process = waiting.pop()
        yield process
        for task in _listed(f"/proc/{process}/task"):
            waiting += map(int, _read(f"/proc/{process}/task/{task}/children").split())


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""
