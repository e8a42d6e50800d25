"""Lock files: taken with ``flock``, which the kernel frees when the holder dies, in a directory of this very node."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress

from gpucache.disk.door import HOLDER_BYTES, has_name, read_head, read_limited
from gpucache.disk.processes import is_running, this_process
from gpucache.disk.refusal import refusal
from gpucache.errors import LockTimeoutError, ProvisionError
from gpucache.layout.paths import host_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


PROVISION_LOCK = "provision.lock"
"""The name of the one lock file, among those of keys, under which a root's directories are made."""
SHARING_LOCK = "sharing.lock"
FRESH_LOCK = "fresh.lock"
ROOTS_LOCKS = (PROVISION_LOCK, SHARING_LOCK, FRESH_LOCK)
"""The names of the locks that are of the root, and of no key."""
REMOTE_FILES = "remote-"
"""How the names of files begin, among those of keys, by which the processes of a node ask a remote together."""
AHEAD_LOCK = "ahead-"
"""How the name of a lock file begins that a process keeps without holding its lock: `serves` tells if it still runs."""
_POLL_S = 0.01
_TRIES = 20
_AGAIN_S = 0.005
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What ``flock`` answers where there is none: no such call, none on this file system, or its lock daemon is gone."""
_NO_FLOCK_HINT = (
    "files cannot be locked there: choose a root (--root, GPUCACHE_DIR) on another file system"
)


@contextmanager
def locked(path: str, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock file at ``path``; other processes and other threads wait, up to ``timeout_s``.

    The kernel frees the lock when the holder dies. The file is never deleted. Beside it, ``<path>.holder`` names the
    process that took the lock last, for whoever waits in vain.

    Raises:
        LockTimeoutError: another process or thread held the lock all the time.
        ProvisionError: the lock file cannot be made.
    """
    import filelock  # costs five times a bare interpreter's start

    try:
        mode = _made_for_all(path)
        # Its second way, a file that is there while the lock is held, would outlive the holder.
        lock = filelock.FileLock(path, mode=mode, fallback_to_soft=False)
        lock.acquire(timeout_s, _POLL_S)
    except filelock.Timeout:
        last_holder = holder(_holder_file(path))
        raise LockTimeoutError(path, timeout_s, last_holder) from None
    except OSError as error:
        if error.errno in NO_FLOCK:
            raise ProvisionError(path, error.errno, _NO_FLOCK_HINT, "lock") from error
        raise refusal(path, error, "lock") from error
    try:
        _sign(path)
        yield
    finally:
        # What was done under the lock is done, also where the disk refuses to unlock: closing the file frees it.
        with suppress(OSError):
            lock.release()


def _made_for_all(path: str) -> int:
    """Make a lock file with the mode that all who share its directory can open; return the mode.

    Raises:
        OSError: the file cannot be made or opened.
    """
    from gpucache.disk.sharing import PRIVATE, modes_in, open_or_new

    modes = modes_in(os.path.dirname(path) or ".")
    if modes != PRIVATE:
        os.close(open_or_new(path, os.O_RDWR))
    return modes.file


def _holder_file(path: str) -> str:
    return path + ".holder"


def _sign(path: str) -> None:
    """Write beside a lock file which process has taken the lock."""
    try:
        with open(_holder_file(path), "wb", opener=open_private) as file:
            file.write(signature())
    except OSError:
        return  # on a full disk the lock still holds; only its holder stays unnamed


def signature(what: str | None = None, device: str | None = None) -> bytes:
    """What the holder of a lock writes for those who wait: which process it is, since when, and what for.

    ``start`` is as `disk.processes` has it. ``device`` is of a compile: the label of the device directory that it is
    for, as the counters name it.
    """
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    said = {
        "pid": os.getpid(),
        "host": host_name(),
        "since": since,
    }
    if what is not None:
        said["what"] = what
    if device is not None:
        said["device"] = device
    this = this_process()
    if this is not None:
        said["start"] = this[1]
    return json.dumps(said).encode()


def open_private(path: str, flags: int) -> int:
    """Open a file to write it anew (an `open` opener); if it is made, only those may read it who share its directory.

    Raises:
        OSError: it cannot be opened, or is a link or FIFO, or has another name: that may be another user's file.
    """
    from gpucache.disk.sharing import open_or_new

    fd = open_or_new(path, flags & ~(os.O_TRUNC | os.O_CREAT))
    try:
        if os.fstat(fd).st_nlink > 1:
            raise OSError(errno.EMLINK, "it has another name", path)
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def holder(path: str) -> str:
    """Which process holds a lock, in words, as the `signature` in this file says."""
    try:
        said = json.loads(read_head(path, HOLDER_BYTES))
        what = f" for {said['what']}" if "what" in said else ""
        return f"process {said['pid']} on {said['host']} since {said['since']}{what}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a process that did not say who it is"


def take(here: int, name: str, empties: bool = True) -> int | None:
    """Take the lock of a file in an open directory, which is made if it is not there, and emptied; its descriptor.

    Without ``empties`` the file's content stays, for the new holder to read.

    None while another process holds the lock. Nobody waits, but for those who look whether the lock is free, which they
    share for an instant. To end, remove the file, and then `let_go`: whoever has opened it meanwhile sees that.

    Raises:
        OSError: the file cannot be made or locked.
    """
    from gpucache.disk.sharing import open_or_new  # few processes take such a lock

    for _ in range(_TRIES):
        fd = open_or_new(name, os.O_RDWR, here)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 1:
                if empties:
                    os.ftruncate(fd, 0)
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(_AGAIN_S)
    return None


def give_up(fd: int, here: int, name: str) -> None:
    """Remove the file that `take` has locked, and free its lock. Never raises."""
    with suppress(OSError):
        # A cleaner may have removed it, and another process taken a new one.
        if has_name(fd, name, here):
            os.unlink(name, dir_fd=here)
    let_go(fd)


def serves(path: str) -> bool:
    """Whether a lock file is one that a process keeps (`AHEAD_LOCK`), and that process runs."""
    if not os.path.basename(path).startswith(AHEAD_LOCK):
        return False
    try:
        said = json.loads(read_limited(path, HOLDER_BYTES * 4))
        return is_running((int(said["pid"]), int(said["start"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def is_free(path: str) -> bool:
    """Whether no process holds the lock file; False for what is no file, is gone or may not be opened.

    Shares the lock for an instant: whoever asks for the lock in that instant is told that it is held.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO would wait
    except OSError:
        return False
    try:
        return is_free_descriptor(fd)
    finally:
        let_go(fd)


def is_free_descriptor(fd: int) -> bool:
    """Whether no process holds the lock of an open file or directory. Shares it until the descriptor is closed.

    False where the lock cannot be asked, as `can_be_asked` tells.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def let_go(fd: int) -> None:
    """Free the lock that an open file or directory holds, and close it. Never raises.

    To close it would not do: a child that another thread forks at this moment, as `subprocess` and C code do, has a
    copy of the descriptor until its exec, and the lock would be held as long. Never for what a forked child has of its
    parent's (`gpucache.forks`).
    """
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    with suppress(OSError):
        os.close(fd)


def can_be_asked(fd: int) -> bool:
    """Whether ``flock`` works on an open file or directory at all, so that its lock tells of life."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        return error.errno not in NO_FLOCK
    return True
