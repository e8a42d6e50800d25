"""Make directories, publish files, hold locks. The only module that imports filelock."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpucache.errors import LockTimeoutError, ProvisionError
from gpucache.mounts import is_local
from gpucache.paths import host_name

_STALE_S = 3600.0
STAGED = "publish-"
_POLL_S = 0.01


def make_directory(path: str) -> bool:
    """Make a directory and its missing parents, each with mode 0700; whether this call made the last one.

    Any number of processes may do this at once: exactly one of them is told True.

    Raises:
        ProvisionError: the operating system refused.
    """
    missing = [path]
    while (made := _mkdir(missing[-1])) is None and os.path.dirname(missing[-1]) != missing[-1]:
        missing.append(os.path.dirname(missing[-1]))
    for step in reversed(missing[:-1]):
        made = _mkdir(step)
    if made is None:  # the parent is there, and still nothing can be made in it: /proc and autofs answer so
        raise ProvisionError(path, errno.ENOENT)
    return made


def _mkdir(path: str) -> bool | None:
    """Whether this call made the directory; None where its parent is missing."""
    try:
        os.mkdir(path, 0o700)
        return True
    except FileExistsError:
        if not os.path.isdir(path):
            raise ProvisionError(path, errno.ENOTDIR, "choose another root, or move that away") from None
        return False
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProvisionError(path, error.errno or errno.EIO) from error


def publish(path: str, data: bytes, staging: str) -> None:
    """Write a file so that readers find the old one or the whole new one.

    Atomic for readers, also when this process is killed; not durable across a power cut (the file is synced, its
    directory is not). Of several writers at once the last wins. ``staging`` is a directory on the same file system;
    what killed writers left there is removed after an hour.

    Raises:
        ProvisionError: the operating system refused; the old file is untouched.
    """
    import tempfile

    try:
        sweep(staging, STAGED)
        fd, temporary = tempfile.mkstemp(prefix=STAGED, dir=staging)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ProvisionError(path, error.errno or errno.EIO) from error


def sweep(directory: str, prefix: str) -> None:
    """Remove what killed processes left under this prefix more than an hour ago. Beside any other sweeper.

    Raises:
        OSError: the directory cannot be listed.
    """
    import shutil

    with os.scandir(directory) as found:
        for item in found:
            try:
                old = item.name.startswith(prefix) and time.time() - item.stat().st_mtime > _STALE_S
                if old and item.is_dir(follow_symlinks=False):
                    shutil.rmtree(item.path, ignore_errors=True)
                elif old:
                    os.unlink(item.path)
            except (FileNotFoundError, PermissionError):
                continue  # another process swept it, or it is not ours to sweep


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
        with open(path + ".holder", "wb", opener=_private) as file:
            file.write(signature())
    except OSError:
        return  # on a full disk the lock still holds; only its holder stays unnamed


def signature(what: str | None = None) -> bytes:
    """What the holder of a lock writes for those who wait: which process it is, since when, and what for."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    said = {"pid": os.getpid(), "host": host_name(), "since": since}
    return json.dumps(said if what is None else {**said, "what": what}).encode()


def _private(path: str, flags: int) -> int:
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


def inside(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies below it, links followed."""
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(directory), ""))


def lock_directory(root: str, inside: str, make: bool = True) -> str:
    """The directory for the locks of a root: ``inside`` it when its file system is local to this node.

    Otherwise (flock on a network file system may hold on one node only, or not at all) a directory of this user in
    ``/dev/shm`` or ``/tmp``, named by uid and real path, so that all processes of the node agree on it whatever their
    ``TMPDIR``. Containers that share the root but not ``/dev/shm`` do not meet there.
    """
    if is_local(inside):
        return inside
    import hashlib

    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
    path = os.path.join(parent, f"gpucache-{os.geteuid()}-{digest}")
    if make:
        make_directory(path)
    return path
