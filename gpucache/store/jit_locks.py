"""The locks that the software of other JIT caches takes while it makes a unit: held, asked, and told from orphans.

Most hold `flock` on a file, which the kernel frees when they die. torch up to 2.13 and AITER make a file, and whoever
finds the file waits until it is gone (`torch/utils/file_baton.py`): a killed build leaves it for good.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpucache.disk.door import SAFELY
from gpucache.disk.files import STALE_S
from gpucache.disk.locks import is_free, let_go
from gpucache.disk.node import DAY_S
from gpucache.disk.processes import is_open
from gpucache.disk.within import Straight
from gpucache.layout.jit_units import is_baton_mode
from gpucache.store.jit_units import JitUnit
from gpucache.store.removal import InUse


@contextmanager
def held(unit: JitUnit, disk: Straight) -> Iterator[None]:
    """Hold the lock of a unit's software for the length of a ``with`` block, if it has one and that is there.

    Raises:
        InUse: its software holds the lock.
    """
    path = unit.lock_path
    found = None if path is None else _lock(path, disk)
    if path is None or found is None:
        yield  # nobody is making it
        return
    if is_baton(unit, found):
        if not is_orphaned(found, unit, STALE_S):
            raise InUse("it is being built, or a killed build has left its lock")
        yield
        return
    try:
        fd = disk.act(path, lambda here, name: os.open(name, os.O_RDONLY | SAFELY, dir_fd=here))
    except OSError as error:
        raise InUse(f"its lock cannot be asked ({error.strerror})") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InUse("its software holds its lock") from None
    finally:
        let_go(fd)


def _lock(path: str, disk: Straight) -> os.stat_result | None:
    """What lies where a lock would be; None where nothing does."""
    try:
        return disk.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InUse(f"its lock cannot be asked ({error.strerror})") from error


def is_baton(unit: JitUnit, lock: os.stat_result) -> bool:
    """Whether the mere existence of this lock file means that somebody is building the unit."""
    by_existence = unit.kind is not None and unit.kind.lock_by == "existence"
    return by_existence and is_baton_mode(lock.st_mode)


def is_orphaned(lock: os.stat_result, unit: JitUnit, after_s: float) -> bool:
    """Whether a lock by its existence has been left by a builder that was killed.

    That is one that nobody has open, of a unit in which nothing has changed for ``after_s``. Where other processes are
    hidden from this user only a day without a change tells; what other nodes and containers have open is never seen.
    """
    unchanged_s = time.time() - max(lock.st_mtime, unit.modified)
    if unchanged_s <= after_s:
        return False
    answer = is_open(lock)
    return answer is False or (answer is None and unchanged_s > DAY_S)


def is_being_made(unit: JitUnit, after_s: float, disk: Straight) -> bool:
    """Whether its software holds the lock of a unit now; takes no lock but shares one for an instant.

    One by existence that nobody has open counts as an orphan after ``after_s`` (`is_orphaned`).
    """
    path = unit.lock_path
    if path is None:
        return False
    try:
        found = disk.lstat(path)
    except OSError:
        return False
    if is_baton(unit, found):
        return not is_orphaned(found, unit, after_s)
    return not is_free(path)
