"""Lock files: taken with ``flock``, which the kernel frees when the holder dies, in a directory of this very node."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import contextmanager

from gpucache.disk.files import make_directory
from gpucache.disk.mounts import is_local
from gpucache.errors import LockTimeoutError, ProvisionError
from gpucache.layout.paths import host_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


PROVISION_LOCK = "provision.lock"
"""The name of the one lock file, among those of keys, under which a root's directories are made."""
_POLL_S = 0.01


@contextmanager
def locked(path: str, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock file at ``path``; other processes and other threads wait, up to ``timeout_s``.

    The kernel frees the lock when the holder dies. The file is never deleted. Beside it, ``<path>.holder`` names the
    process that took the lock last, for whoever waits in vain.

    Raises:
        LockTimeoutError: somebody else held it all the time.
        ProvisionError: the lock file cannot be made.
    """
    import filelock  # costs five times a bare interpreter's start

    lock = filelock.FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout_s, _POLL_S)
    except filelock.Timeout:
        raise LockTimeoutError(path, timeout_s, holder(path + ".holder")) from None
    except OSError as error:
        raise ProvisionError(path, error.errno or errno.EIO) from error
    try:
        _sign(path)
        yield
    finally:
        lock.release()


def _sign(path: str) -> None:
    try:
        with open(path + ".holder", "wb", opener=open_private) as file:
            file.write(signature())
    except OSError:
        return  # on a full disk the lock still holds; only its holder stays unnamed


def signature(what: str | None = None) -> bytes:
    """What the holder of a lock writes for those who wait: which process it is, since when, and what for."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    said = {"pid": os.getpid(), "host": host_name(), "since": since}
    if what is not None:
        said["what"] = what
    return json.dumps(said).encode()


def open_private(path: str, flags: int) -> int:
    """Open a file that is this user's alone if it is made, and never through a link (an opener for `open`)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def holder(path: str) -> str:
    """Who holds a lock, as far as the `signature` in the file says."""
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
        what = f" for {said['what']}" if "what" in said else ""
        return f"process {said['pid']} on {said['host']} since {said['since']}{what}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that did not say who it is"


def local_directory(root: str, inside: str, make: bool = True) -> str:
    """The directory for the locks of a root: ``inside`` it when its file system is local to this node.

    Otherwise (flock on a network file system may hold on one node only, or not at all) a directory of this user in
    ``/dev/shm`` or ``/tmp``, named by uid and real path, so that all processes of the node agree on it whatever their
    ``TMPDIR``. Containers that share the root but not ``/dev/shm`` do not meet there.
    """
    if is_local(inside):
        return inside
    import hashlib

    real = os.fsencode(os.path.realpath(root))
    digest = hashlib.sha256(real).hexdigest()[:16]
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
    path = os.path.join(parent, f"gpucache-{os.geteuid()}-{digest}")
    if make:
        make_directory(path)
    return path


def is_free(path: str) -> bool:
    """Whether nobody holds the lock file; False for what is no file, is gone or may not be opened.

    Shares the lock for an instant: whoever asks for the lock in that instant is told that it is held.
    """
    try:
        # Opening a FIFO would wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return is_free_descriptor(fd)
    finally:
        os.close(fd)


def is_free_descriptor(fd: int) -> bool:
    """As `is_free`, of a file or directory that is open. The lock is shared until the descriptor is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
