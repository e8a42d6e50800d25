"""`fold`: take the counters of ended processes into one file, without waiting, by whoever comes by.

Each file that is folded is held by its own lock, so that of several folds each takes other files. What another node may
take for a dead process's as well is claimed by a rename, which succeeds for one of them. The new file is complete, and
names what it has taken in, before anything is removed: killed at any moment, a fold changes no sum.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from gpucache.disk.door import DIRECTORY, has_name, open_regular
from gpucache.disk.files import STAGED, sweep_old
from gpucache.disk.locks import let_go
from gpucache.disk.node import DAY_S, is_locked_here, node_id
from gpucache.disk.sharing import open_or_new
from gpucache.disk.vetting import is_groups
from gpucache.forks import closed_in_child
from gpucache.layout import paths
from gpucache.store.counter_files import (
    CLAIM,
    FOLDED,
    OLD,
    OLD_CLAIMED,
    OLD_FOLDED,
    OLD_LOCK,
    fit,
    host_label,
    identity,
    make_file,
    new_name,
    opened,
)
from gpucache.store.counter_look import Look, listed, look
from gpucache.store.counts import Sums, add_all, bounded, encoded, this_hour
from gpucache.values import Value

_FEW = 32  # on the way of a kernel launch
_MANY = 200
_MOST_LOOKED_AT = 64
_MOST_LEFT = 1000


class _Held(Value):
    """A file of an ended process, or a folded one, that no other process of this node folds meanwhile."""

    known: str
    """Its identity."""
    name: str
    fd: int
    modified_ns: int
    claimed: bool
    """Whether it must be claimed by a rename: another node may take it as well."""


def fold(root: str) -> int:
    """Fold all files of ended processes; return how many there were. Beside any writer, reader and fold.

    Does nothing for anyone but the owner of the directory and root: what others make their owner could not read.

    Raises:
        OSError: the disk refused; no sum has changed.
    """
    with _own_directory(root) as here:
        if here is None:
            return 0
        sweep_old(paths.ours(root, "stats"), STAGED)
        _claim_old(here, None)
        whole = 0
        while folded := _fold_some(here, _MANY, None):
            whole += folded
        return whole


def fold_few(directory: str) -> None:
    """Fold some files of ended processes in ``stats/``, where the time belongs to a program.

    Never raises for what the disk says.
    """
    with suppress(OSError):
        here = os.open(directory, DIRECTORY)
        try:
            if _is_own(here):
                _claim_old(here, _FEW)
                _fold_some(here, _FEW, _MOST_LOOKED_AT)
        finally:
            os.close(here)


@contextmanager
def _own_directory(root: str) -> Iterator[int | None]:
    """A descriptor of the directory with counters; None where that is not there, or is another user's."""
    if not os.path.isdir(paths.ours(root, "stats")):
        yield None
        return
    with opened(root) as here:
        yield here if _is_own(here) else None


def _is_own(here: int) -> bool:
    """Whether it is this user's, or that of a group that shares the root, or root acts."""
    found = os.fstat(here)
    return os.geteuid() in (0, found.st_uid) or is_groups(found.st_mode)


# ---- one fold


def _fold_some(here: int, most: int, most_looked_at: int | None) -> int:
    """Fold ``most`` files at once; return how many files of processes there were.

    ``most_looked_at`` bounds how many files are looked at, those of this node first; None looks at all.
    """
    held: list[_Held] = []
    try:
        for held_one in _dead(here, most_looked_at):
            held.append(held_one)
            closed_in_child.add(held_one.fd)
            if len(held) == most:
                break
        if all(one.name.endswith(FOLDED) for one in held) and len(held) < 2:
            return 0
        return _fold_held(here, held)
    finally:
        for one in held:
            closed_in_child.discard(one.fd)
            let_go(one.fd)


def _fold_held(here: int, held: list[_Held]) -> int:
    """Make one file of those that are held; return how many files of processes they were."""
    # Looked at once they are held: nobody can fold one of them from here on.
    seen = look(here, {one.known for one in held})
    for known in seen.absorbed.intersection(seen.names):  # a killed fold left it
        _remove(here, seen.names[known])
    taken = _take(here, held, seen)
    left = seen.absorbed.intersection(listed(here))
    if not _is_gain(taken, seen) or len(left) > _MOST_LEFT:
        return 0
    _write(here, seen, taken, left)
    for name in taken.values():
        _remove(here, name)
    processes = [name for name in taken.values() if not name.endswith(FOLDED)]
    return len(processes)


def _take(here: int, held: list[_Held], seen: Look) -> dict[str, str]:
    """The names of the held files that are to be folded, by their identities, each once it is claimed."""
    taken = {}
    for one in held:
        file = seen.files.get(one.known)
        if file is None or not file.readable or one.known in seen.absorbed:
            continue
        claimed = _claimed(here, one)
        if claimed is not None:
            taken[one.known] = claimed
    return taken


def _is_gain(taken: dict[str, str], seen: Look) -> bool:
    """Whether there are fewer files afterwards, or the first folded one: a file in the place of another is no gain."""
    if len(taken) != 1:
        return len(taken) > 1
    folded = [name for name in seen.names.values() if name.endswith(FOLDED)]
    return not folded


def _write(here: int, seen: Look, taken: Iterable[str], left: Iterable[str]) -> None:
    """Write a new folded file, which takes in the files with these identities, and still names what is left."""
    sums: Sums = {}
    for known in taken:
        add_all(sums, seen.files[known].sums)
    sums = bounded(sums, this_hour(), fit, host_label())
    said = {"absorbed": sorted({*taken, *left}), "sums": encoded(sums)}
    text = json.dumps(said).encode()
    name = new_name(here, node_id(), "folded")
    staged = STAGED + name
    fd = make_file(here, staged)
    try:
        with open(fd, "wb") as file:
            file.write(text)
        os.rename(staged, name + FOLDED, src_dir_fd=here, dst_dir_fd=here)
    except OSError:
        _remove(here, staged)
        raise


def _remove(here: int, name: str) -> None:
    """Remove a file whose counters are in a folded one; where that fails, it stays named there."""
    with suppress(OSError):
        os.unlink(name, dir_fd=here)


# ---- who may fold a file


def _dead(here: int, most: int | None) -> Iterator[_Held]:
    """Hold the files of ended processes and the folded ones, one after the other; the caller closes them."""
    names = listed(here)
    order = sorted(names, key=lambda known: (not names[known].endswith(FOLDED), known))
    device = os.fstat(here).st_dev
    own = [known for known in order if is_locked_here(names[known], device)]
    others = [known for known in order if not is_locked_here(names[known], device)]
    for known in [*own, *_some(others, most)][:most]:
        if names[known].endswith(OLD):
            continue  # `_claim_old` takes these
        held = _hold(here, known, names[known])
        if held is not None:
            yield held


def _some(names: list[str], most: int | None) -> list[str]:
    """``most`` of the names, from another one on for each process: not all are to take the same; None takes all."""
    if most is None:
        return names
    start = os.getpid() % max(len(names), 1)
    return (names[start:] + names[:start])[:most]


def _hold(here: int, known: str, name: str) -> _Held | None:
    """Lock a file of counters if its process has ended; None where the process lives, or another fold has the file.

    No lock of another node's may be seen here, nor one that was taken by another mount, and there may be no locks: then
    a day of silence tells.
    """
    try:
        fd, found = open_regular(name, here=here)
    except OSError:
        return None
    silent_s = time.time() - found.st_mtime
    by_age = not is_locked_here(name, os.fstat(here).st_dev)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except BlockingIOError:
        mine = False
    except OSError:
        mine = by_age = True
    if mine and (silent_s > DAY_S or not by_age) and has_name(fd, name, here):
        return _Held(known, name, fd, found.st_mtime_ns, silent_s > DAY_S / 2)
    let_go(fd)
    return None


def _claimed(here: int, held: _Held) -> str | None:
    """The name of a held file, once no other node can fold it either; None where another node has been quicker.

    Of those who rename it, one succeeds. The file is young then, so that for a day nobody claims it again.
    """
    if not held.claimed:
        return held.name
    suffix = os.path.splitext(held.name)[1]
    name = new_name(here, node_id(), "claimed") + CLAIM + held.known + suffix
    try:
        os.rename(held.name, name, src_dir_fd=here, dst_dir_fd=here)
        if os.fstat(held.fd).st_mtime_ns != held.modified_ns:
            return None  # its process has come back, or another node has claimed it just before
        os.utime(held.fd)
    except OSError:
        return None
    return name if has_name(held.fd, name, here) else None


# ---- the format before


def _claim_old(here: int, most: int | None) -> None:
    """Claim the files of ended processes that a gpucache of the format before has made, and what that has folded.

    That gpucache no longer sees them then, by their ending. Under its lock: it never folds meanwhile what is claimed
    here. ``most`` bounds how many files are looked at; None looks at all.
    """
    old = [name for name in listed(here).values() if name.endswith(OLD)]
    if not old:
        return
    try:
        os.close(open_or_new(OLD_LOCK, os.O_RDONLY, here))
        lock, _ = open_regular(OLD_LOCK, os.O_RDONLY, here)
    except OSError:
        return  # what lies there is no lock: the files are read where they are
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in _some(old, most):
            _claim_old_file(here, name)
    except OSError:
        return  # somebody holds it: next time
    finally:
        let_go(lock)


def _claim_old_file(here: int, name: str) -> None:
    known = identity(here, name)
    if known is None:
        return
    claimed = new_name(here, node_id(), "claimed") + CLAIM + known + OLD_CLAIMED
    if name == OLD_FOLDED:
        os.rename(name, claimed, src_dir_fd=here, dst_dir_fd=here)
        return
    held = _hold(here, known, name)
    if held is not None:
        try:
            os.rename(name, claimed, src_dir_fd=here, dst_dir_fd=here)
        finally:
            let_go(held.fd)
