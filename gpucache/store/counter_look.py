"""`look`: read all counters at once, so that none counts twice and none is missed, whoever writes and folds meanwhile.

A folded file names the files that it has taken in, and whoever looks leaves out what is named. Nobody waits to look:
the files are listed before and after they are read, and read again where a fold ran between.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from gpucache.disk.door import open_regular
from gpucache.disk.locks import let_go
from gpucache.store.counter_files import (
    FOLDED,
    OLD,
    OLD_LOCK,
    File,
    identity,
    is_first_of_a_process,
    read,
)
from gpucache.values import Value

_TRIES = 200
_OLD_TRIES, _OLD_TRY_S = 50, 0.002


class Look(Value):
    """What files of counters there were at one moment, and what was in them."""

    names: dict[str, str]
    """The name of each file by its identity, those included that a fold has taken in."""
    files: dict[str, File]
    """What was read, by identity."""
    absorbed: frozenset[str]
    """The identities of what a fold has taken in: it counts no more, and is to be removed."""


def look(here: int, wanted: Collection[str] | None = None) -> Look:
    """Read the files of counters in an open directory, or of those of processes only ``wanted`` ones (identities).

    Never waits, but for a gpucache of the format before, a tenth of a second. Exact beside any writer and fold of this
    format; were there folds without end, the last of 200 tries would count.

    Raises:
        OSError: the directory cannot be listed.
    """
    names = listed(here)
    with _no_old_fold_beside(here, names):
        return _look(here, wanted)


def _look(here: int, wanted: Collection[str] | None) -> Look:
    names = listed(here)
    files: dict[str, File] = {}
    absorbed: frozenset[str] = frozenset()
    for _ in range(_TRIES):
        # What is gone was folded: the file that has taken it in is among those read now.
        files = {known: file for known, file in files.items() if known in names}
        for known, name in names.items():
            if known in files or not _is_wanted(known, name, wanted):
                continue
            file = read(here, name)
            if file is not None:
                files[known] = file
        absorbed = frozenset().union(*(file.absorbed for file in files.values()))
        after = listed(here)
        was_whole = _was_whole(names, after, files, absorbed, wanted)
        names = after
        if was_whole:
            break
    return Look(names, files, absorbed)


def _is_wanted(known: str, name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or known in wanted or name.endswith(FOLDED)


def _was_whole(
    before: dict[str, str],
    after: dict[str, str],
    files: dict[str, File],
    absorbed: frozenset[str],
    wanted: Collection[str] | None,
) -> bool:
    """Whether what was read is all that there was at one moment.

    A file that a fold has made while the others were read holds counters that may be read already, or missed: it stands
    in the list after. What is in both lists, or only in the one before, was read, or was folded before.
    """
    for known, name in before.items():
        if _is_wanted(known, name, wanted) and known not in files and known not in absorbed:
            return False
    new = [name for known, name in after.items() if before.get(known) != name]
    return all(map(is_first_of_a_process, new))


def listed(here: int) -> dict[str, str]:
    """The name of each file of counters, by its identity.

    Raises:
        OSError: the directory cannot be listed.
    """
    names = {}
    for name in sorted(os.listdir(here)):
        known = identity(here, name)
        if known is not None:
            names[known] = name
    return names


@contextmanager
def _no_old_fold_beside(here: int, names: dict[str, str]) -> Iterator[None]:
    """Keep a gpucache of the format before from folding its files while they are read; that waits for us, shortly."""
    if not any(name.endswith(OLD) for name in names.values()):
        yield
        return
    try:
        fd, _ = open_regular(OLD_LOCK, here=here)
    except OSError:  # nobody has folded yet
        yield
        return
    try:
        _share(fd)
        yield
    finally:
        let_go(fd)


def _share(fd: int) -> None:
    """Share a lock once it is free, or go on without after a tenth of a second: who holds it so long folds nothing."""
    for _ in range(_OLD_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_OLD_TRY_S)
        except OSError:
            return
