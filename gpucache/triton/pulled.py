"""Waits for what a pull of this node is bringing, in the place of a compile that would make the same."""

from __future__ import annotations

import os
import time

from gpucache.disk.locks import holder
from gpucache.log import WARNING, tell_in_job
from gpucache.remote.awaited import Awaited
from gpucache.store.manifest import MANIFEST
from gpucache.triton.from_fallback import may_have

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.remote.pull_files import Remark
    from gpucache.triton.location import Location

_told: set[Remark] = set()
_waited_s = 0.0
"""For how long this process has waited for pulls in all."""
_TOLD_S = 3600.0
"""What is wrong with a pull is told for so long, to each job once."""
_LEAST_S, _MOST_S = 0.002, 0.02
"""How often the store is looked at: soon at first, since most entries are there within milliseconds."""


def wait_for_pull(location: Location, store_key: str, entry: str) -> bool:
    """Sleep while a pull of this node may bring the store's ``entry``; whether somebody may have published it.

    Returns at once where no pull is in progress that may bring this key, or the fallback has it. A pull that shows no
    life for the stall limit is told, and the caller goes on as if there were none. One that lives is waited for as long
    as the compile of another process, by all kernels of this process together: else a remote that gives a little at a
    time would cost that for each. The caller must not hold the key's lock.

    Raises:
        OSError, UnsafeDirectoryError: there can be no directory for locks.
    """
    global _waited_s
    awaited = Awaited(location.locks.directory(), store_key, location.stall_s)
    if _waited_s > location.timeout_s or not awaited.is_coming():
        _tell_of_pulls(awaited)
        return False
    if may_have(location, store_key):
        return False
    began = time.monotonic()
    pause_s = _LEAST_S
    try:
        while not os.path.lexists(f"{entry}/{MANIFEST}") and awaited.is_coming():
            if _waited_s + time.monotonic() - began > location.timeout_s:
                awaited.stalled = awaited.stalled or awaited.coming
                break
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _MOST_S)
        if awaited.stalled is not None:
            cause = f"{holder(awaited.stalled)} ({awaited.stalled})"
            location.degraded("waited in vain for a pull", cause, "going on without it")
        _tell_of_pulls(awaited)
        return True  # also where the pull is over: it may have published between the looks
    finally:
        spent = time.monotonic() - began
        _waited_s += spent
        location.stats.add("waits")
        location.stats.add("waited_s", spent, now=True)


def _tell_of_pulls(awaited: Awaited) -> None:
    """Say what is wrong with pulls: nobody reads what a process says that `gpucache run` has detached."""
    for remark in awaited.over.values():
        age_s = time.time() - remark.since
        if remark not in _told and age_s < _TOLD_S:
            _told.add(remark)
            tell_in_job(WARNING, "%s", remark.text)
