"""The size of the store, which its writers keep in the file ``stats/size``; `counting` counts what that corrects."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.door import SAFELY, open_regular, read_limited
from gpucache.disk.files import give_to_owner_of, make_below_root
from gpucache.disk.locks import NO_FLOCK, let_go
from gpucache.disk.sharing import new_file
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.within import Straight

_COUNTED_S = 86400.0
_LENGTH = 96
_TRIES, _TRY_S = 100, 0.001
_MOST_BYTES = 2**60  # taken at its word, a number that no store has would let every entry go


class Total(NamedTuple):
    """What the store takes, as the file says."""

    size_bytes: int = 0
    draining: bool = False
    """Whether an eviction has begun and not yet reached its aim."""
    counted: float = 0.0
    """When the store was last counted (seconds since the epoch); 0 for never."""

    @property
    def stale(self) -> bool:
        """Whether the store is to be counted anew."""
        age_s = time.time() - self.counted
        return not 0 <= age_s <= _COUNTED_S


def count_anew_later(root: str) -> None:
    """Let the next writer count the store anew, because something else than its writers changes it.

    ``root`` is a real path; no link is followed. Where nobody has counted yet, nothing is made.
    """
    from gpucache.disk.within import Straight  # a launch adds by path

    with suppress(OSError), Straight() as disk:
        _update_straight(root, 0, disk, anew=True, now=0.0)


def add_straight(root: str, change: int, disk: Straight) -> None:
    """Add to the total in the file, as `updated`, for whoever may follow no link. Where there is none, none is made.

    Raises:
        OSError: there is none, or the disk refused.
    """
    _update_straight(root, change, disk, anew=False, now=None)


def _update_straight(
    root: str, change: int, disk: Straight, *, anew: bool, now: float | None
) -> None:
    def update(here: int, name: str) -> None:
        fd, found = open_regular(name, os.O_RDWR, here)
        try:
            if found.st_nlink > 1:
                raise OSError(errno.EMLINK, "it has another name", name)
            _retried(lambda: _update(fd, change, draining=None, anew=anew, now=now))
        finally:
            let_go(fd)

    disk.act(_path(root), update)


def set_total(root: str, size_bytes: int, now: float | None = None) -> Total | None:
    """Write into the file what was counted at ``now``: seconds since the epoch, by default this moment.

    Returns the total; None where other processes have written the file all the time, for a tenth of a second.

    Raises:
        OSError: the disk refused.
    """
    return _retried(lambda: updated(root, size_bytes, anew=True, now=now))


def _retried(update: Callable[[], Total | None]) -> Total | None:
    """Update the file once no other process does, for which a tenth of a second is enough; None where it was not."""
    for _ in range(_TRIES):  # writers hold the file for microseconds
        total = update()
        if total is not None:
            return total
        time.sleep(_TRY_S)
    return None


def total_bytes(root: str) -> int | None:
    """The bytes that the store takes, as its writers keep them in the file; None where nobody has counted."""
    try:
        total = _parsed(read_limited(_path(root), _LENGTH))
    except OSError:
        return None
    return total.size_bytes if total.counted else None


def _path(root: str) -> str:
    return paths.ours(root, "stats", "size")


def updated(
    root: str,
    change: int,
    *,
    draining: bool | None = None,
    anew: bool = False,
    now: float | None = None,
) -> Total | None:
    """Add ``change`` to the total in the file, or (``anew``) set the total to it; return the new total.

    None while another process writes the file: then nothing is changed.

    Raises:
        OSError: the disk refused.
    """
    fd = _open(_path(root))
    try:
        return _update(fd, change, draining=draining, anew=anew, now=now)
    finally:
        let_go(fd)


def _update(
    fd: int, change: int, *, draining: bool | None, anew: bool, now: float | None
) -> Total | None:
    """Change the total in the open file, as `updated`."""
    try:
        _lock(fd)
        old = _parsed(os.pread(fd, _LENGTH, 0))
        size = old.size_bytes + change
        counted_at = old.counted
        if anew:
            size = change
            counted_at = time.time() if now is None else now
        if draining is None:
            draining = old.draining
        new = Total(min(max(0, size), _MOST_BYTES - 1), draining, counted_at)
        if new != old:
            text = json.dumps(new).encode()
            os.pwrite(fd, text.ljust(_LENGTH), 0)
        return new
    except BlockingIOError:
        return None


def _lock(fd: int) -> None:
    """Keep other processes from changing the open file. Where ``flock`` does not work, nobody is kept from it.

    Of two that add at one moment one may then be lost, until the store is counted anew.

    Raises:
        BlockingIOError: another process changes the file.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise


def _open(path: str) -> int:
    """Open the file, which is made with its directory if it is not there, or if something else is in its place."""
    try:
        fd, found = open_regular(path, os.O_RDWR)
        if found.st_nlink <= 1:
            return fd
        os.close(fd)
        # Another user's file, perhaps, that was given this name so that root writes into it.
        os.unlink(path)
    except FileNotFoundError:
        make_below_root(os.path.dirname(path))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ENXIO):
            raise
        # A FIFO, a socket, a device, a link, which would turn the limit off for good.
        os.unlink(path)
    return _made(path)


def _made(path: str) -> int:
    """Make the file, for the owner of its directory where root makes it; or open what another process has made now."""
    try:
        fd = new_file(path, os.O_RDWR)
    except FileExistsError:
        return os.open(path, os.O_RDWR | SAFELY)
    give_to_owner_of(os.path.dirname(path), fd)
    return fd


def _parsed(text: bytes) -> Total:
    """The total in the content of the file; nothing, never counted, where the content makes no sense."""
    try:
        size, draining, when = json.loads(text)
        total = Total(int(size), bool(draining), float(when))
    except (ValueError, TypeError, OverflowError):
        return Total()
    return total if 0 <= total.size_bytes < _MOST_BYTES else Total()
