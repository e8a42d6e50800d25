"""Bring files of TorchInductor's to their places in a root, as torch would: whole, and never over what is there.

What may be placed, `gpucache.layout.inductor.carried_unit` tells by its name. Torch looks for each file by that name
before it makes it (read in torch 2.13.0, `_inductor/codecache.py` `write`, `FxGraphCache`): a file that is there is
used as it is, whoever brought it. Libraries are looked for and built under ``locks/<hash>.lock``, by ``flock``; so that
lock is held here too, and one that is held is not waited for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

from gpucache.disk.capabilities import is_refusal
from gpucache.disk.door import SAFELY, open_regular
from gpucache.disk.locks import NO_FLOCK, let_go
from gpucache.disk.sharing import (
    GROUP,
    is_shared_by_group,
    modes_in,
    new_directory,
    new_file,
    open_or_new,
)
from gpucache.disk.within import Straight
from gpucache.layout.inductor import carried_unit, is_graph
from gpucache.store.placing import hand_over
from gpucache.store.removal import InUse

Placed = Literal["made", "there"]

_OPEN, _OPEN_FILE = 0o755, 0o644
"""The modes of directories and files, as torch's are under the usual umask, in a root that no group shares."""
_TEXTS = ".py", ".best_config"
"""How the names of code end that torch writes without a lock."""


def new_beside_torchs(path: str, here: int | None = None) -> int:
    """Make a file that comes to torch's, to write it: as torch would, but in a root that a group shares with its mode.

    ``here`` is a descriptor of the directory from which a relative path leads.

    Raises:
        OSError: the disk refused.
    """
    directory = os.path.dirname(path) if here is None else here
    if modes_in(directory) == GROUP:
        return new_file(path, os.O_WRONLY, here, GROUP)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY
    return os.open(path, flags, _OPEN_FILE, dir_fd=here)


def _mkdir(name: str, here: int, is_shared: bool) -> None:
    """Make a directory as torch would, but where a group shares the root with its mode, whatever the umask."""
    if is_shared:
        new_directory(name, GROUP, here)
    else:
        os.mkdir(name, _OPEN, dir_fd=here)


def _open_lock(name: str, here: int) -> int:
    """Open a lock of torch's, which is made if it is not there."""
    if modes_in(here) == GROUP:
        return open_or_new(name, os.O_RDWR, here)
    return os.open(name, os.O_RDWR | os.O_CREAT | SAFELY, _OPEN_FILE, dir_fd=here)


def place(root: str, unit: str, staged: Mapping[str, str], disk: Straight) -> Placed:
    """Give the files of one unit their names below a root; ``made`` if one of them was not there.

    ``root`` is a real path, ``staged`` gives the path of each verified file by its path below the root. Such a file
    gets a second name where that is possible, else it is copied.

    Beside any torch, `prune` and others that place. Killed at any instant, some files are there, each whole, and the
    next call brings the rest. Not durable across power loss.

    Raises:
        InUse: torch, or somebody who removes, holds the lock of this code; nothing was done.
        OSError: the disk refused; ``ELOOP`` where a link is on the way.
    """
    for name in staged:
        if carried_unit(name) != unit:
            raise ValueError(f"{name!r} is no file of {unit!r}")
    made = False
    with _locked(root, unit, staged, disk):
        # A library after its sources, as torch makes them.
        for name in sorted(staged, key=lambda name: (name.endswith(".so"), name)):
            made = _place_file(root, name, staged[name], disk) or made
    return "made" if made else "there"


def are_there(root: str, names: Iterator[str] | tuple[str, ...], disk: Straight) -> bool:
    """Whether there is something by each of these names below a root."""
    return all(disk.lexists(f"{root}/{name}") for name in names)


def _place_file(root: str, name: str, staged: str, disk: Straight) -> bool:
    """Give a staged file its name; return whether nothing was there."""
    target = f"{root}/{name}"
    if disk.lexists(target):
        return False
    directory = os.path.dirname(target)
    _make_way(root, directory, disk)
    _hand_over_staged(staged, directory, disk)
    try:
        disk.link(staged, target)
    except FileExistsError:
        return False  # another process was faster
    except OSError as error:
        if not is_refusal(error):
            raise
        return _copy(staged, target, disk)
    return True


def _copy(staged: str, target: str, disk: Straight) -> bool:
    """Copy a staged file to its name, by a temporary name as torch's `write_atomic` has it, which torch passes over.

    Between the last look and the rename torch may have made the file: it is replaced by one that is as good.
    """
    directory, name = os.path.split(target)
    aside = f".{os.getpid()}.{threading.get_ident()}.tmp"
    with disk.directory(directory) as here:
        try:
            _write_copy(staged, aside, here, disk)
            if disk.lexists(target):
                return False
            os.rename(aside, name, src_dir_fd=here, dst_dir_fd=here)
        finally:
            with suppress(OSError):
                os.unlink(aside, dir_fd=here)
    return True


def _write_copy(staged: str, name: str, here: int, disk: Straight) -> None:
    source = disk.act(staged, lambda fd, name: open_regular(name, here=fd)[0])
    with os.fdopen(source, "rb") as old, os.fdopen(new_beside_torchs(name, here), "wb") as new:
        shutil.copyfileobj(old, new)
        _hand_over(new.fileno(), os.fstat(here))


def _make_way(root: str, directory: str, disk: Straight) -> None:
    """Make the directories below a root that lead to a file."""
    step = root
    is_shared = is_shared_by_group(root)
    for name in directory[len(root) + 1 :].split("/"):
        above, step = step, f"{step}/{name}"
        if disk.lexists(step):
            continue
        with suppress(FileExistsError):
            disk.act(step, lambda here, name: _mkdir(name, here, is_shared))
        with disk.directory(above) as outer, disk.directory(step) as here:
            hand_over(here, (), os.fstat(outer))


def _hand_over_staged(staged: str, directory: str, disk: Straight) -> None:
    """Give a staged file to the owner of the directory in which it gets its name, before it has two names."""
    if os.geteuid() != 0:
        return
    fd = disk.act(staged, lambda here, name: open_regular(name, here=here)[0])
    try:
        with disk.directory(directory) as here:
            _hand_over(fd, os.fstat(here))
    finally:
        os.close(fd)


def _hand_over(fd: int, owner: os.stat_result) -> None:
    """Give an open file of root's own making to another owner, as `gpucache.store.placing.hand_over`."""
    found = os.fstat(fd)
    is_roots = found.st_uid == 0 and found.st_nlink == 1
    if os.geteuid() == 0 and owner.st_uid != 0 and is_roots:
        with suppress(OSError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


@contextmanager
def _locked(root: str, unit: str, names: Mapping[str, str], disk: Straight) -> Iterator[None]:
    """Hold the lock under which torch would make these files, for the length of a ``with`` block, if there is one.

    Raises:
        InUse: another process holds the lock, or it cannot be taken.
    """
    if all(is_graph(name) or name.endswith(_TEXTS) for name in names):
        yield
        return
    path = f"{root}/locks/{unit}.lock"
    _make_way(root, f"{root}/locks", disk)
    fd = disk.act(path, lambda here, name: _open_lock(name, here))
    try:
        _take(fd, path, disk)
        yield
    finally:
        let_go(fd)


def _take(fd: int, path: str, disk: Straight) -> None:
    """Take the lock of an open file, if nobody has it.

    Raises:
        InUse: somebody has it, or it cannot be taken.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse("it is locked") from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        raise InUse("nothing can be locked there") from error
    if not _is_at(fd, path, disk):
        raise InUse("it is being removed")
    with disk.directory(os.path.dirname(path)) as here:
        _hand_over(fd, os.fstat(here))


def _is_at(fd: int, path: str, disk: Straight) -> bool:
    """Whether an open file is the one by this name: whoever removes code removes its lock too."""
    try:
        return os.path.samestat(os.fstat(fd), disk.lstat(path))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
