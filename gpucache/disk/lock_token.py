"""The token in a root that names a directory of this user in ``/dev/shm`` or ``/tmp``, where the locks then are.

`lock_place` decides whether the locks of a root are there, and says why nobody else can know the directory's name.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress

from gpucache.disk.door import open_regular
from gpucache.disk.locks import PROVISION_LOCK, REMOTE_FILES, let_go
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.within import Straight
from gpucache.errors import UnsafeDirectoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_TOKEN_BYTES = 32
_DIGITS = frozenset(b"0123456789abcdef")
_WRITTEN_S = 10.0
"""A token that is not whole after so many seconds was left by a process that was killed, or by a full disk."""
_NAMES = 16
_KEPT_S = 30 * DAY_S
TOKEN = ".place"
"""How the name of a file ends that has the token of a node and user."""


# ---- the token


def _name() -> str:
    return f"{node_id()}.{os.geteuid()}{TOKEN}"


def new_token() -> bytes:
    """32 hexadecimal digits that nobody can guess."""
    return os.urandom(_TOKEN_BYTES // 2).hex().encode()


def read_token(here: int) -> bytes | None:
    """The token of this node and user in an open directory; None where there is none, or no whole one.

    A part of a token could be guessed, and with it the directory's name.
    """
    try:
        fd, _ = open_regular(_name(), os.O_RDONLY, here)
    except OSError:
        return None
    try:
        token = os.read(fd, _TOKEN_BYTES + 1)
    finally:
        os.close(fd)
    is_whole = len(token) == _TOKEN_BYTES and _DIGITS.issuperset(token)
    return token if is_whole else None


def published(here: int, token: bytes) -> bytes | None:
    """Put a token into an open directory unless one is there; return the one that is there then.

    It appears whole. Only where a file can have no second name may a reader see a part of it for an instant.

    Raises:
        OSError: no file can be made there.
    """
    _forget_old(here)
    _sweep_old()
    name = _name()
    _forget_broken(here, name)
    unfinished = f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    _write_new(here, unfinished, token)
    try:
        os.link(unfinished, name, src_dir_fd=here, dst_dir_fd=here)
    except FileExistsError:
        pass  # another process was faster
    except OSError:
        with suppress(FileExistsError):
            _write_new(here, name, token)
    finally:
        with suppress(OSError):  # where nothing may be deleted, it stays for 30 days
            os.unlink(unfinished, dir_fd=here)
    return read_token(here)


def _write_new(here: int, name: str, data: bytes) -> None:
    fd = os.open(name, _NEW_FILE, 0o600, dir_fd=here)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _forget_broken(here: int, name: str) -> None:
    """Remove what is no token in a token's place, unless a process may be writing it at this moment.

    Whoever has put a good one there meanwhile, which goes too, reads with the next lock which one is there then.
    """
    with suppress(OSError):
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        if read_token(here) is None and time.time() - found.st_mtime > _WRITTEN_S:
            os.unlink(name, dir_fd=here)


def _forget_old(here: int) -> None:
    """Remove the tokens of nodes that were started again since, or are gone, after 30 days."""
    for name in os.listdir(here):
        if TOKEN not in name:
            continue
        with suppress(OSError):
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if time.time() - found.st_mtime > _KEPT_S:
                os.unlink(name, dir_fd=here)


# ---- the directory that it names


def _sweep_old() -> None:
    """Remove this user's directories of roots that are gone: those that are empty, or nearly, and a day old.

    Whose directory is removed all the same makes it again with its next lock.
    """
    parent = _parent()
    prefix = f"gpucache-{os.geteuid()}-"
    with suppress(OSError), Straight() as disk:
        for name in os.listdir(parent):
            path = f"{parent}/{name}"
            if name.startswith(prefix) and time.time() - disk.lstat(path).st_mtime > DAY_S:
                with suppress(OSError):
                    _remove_unused(path, disk)


def _remove_unused(directory: str, disk: Straight) -> None:
    """Remove a directory of locks in which there is no lock, but for a free one of `provision`, and of a remote's.

    Raises:
        OSError: something else is in it.
    """
    with disk.directory(directory) as here:
        for name in (PROVISION_LOCK, f"{PROVISION_LOCK}.holder"):
            with suppress(FileNotFoundError):
                _remove_if_free(here, name)
        # A courier's lock comes before its socket, which is no file that could be asked.
        for name in sorted(os.listdir(here)):
            if name.startswith(REMOTE_FILES):
                _remove_of_remote(here, name)
    disk.rmdir(directory)


def _remove_of_remote(here: int, name: str) -> None:
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISSOCK(found.st_mode):
        os.unlink(name, dir_fd=here)
    else:
        _remove_if_free(here, name)


def _remove_if_free(here: int, name: str) -> None:
    """Remove a file unless it is locked. filelock looks, once it has a lock, whether its file is still there."""
    fd, _ = open_regular(name, os.O_RDONLY, here)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=here)
    finally:
        let_go(fd)


def first_own(token: bytes) -> str:
    """The first of the paths that a token gives at which nobody else has put something.

    Raises:
        UnsafeDirectoryError: there is none.
    """
    taken = ""
    for path in _paths(token):
        try:
            found = os.lstat(path)
        except OSError:
            return path
        if _is_own(found):
            return path
        taken = path
    fact = f"another user has put something there, and in the place of {_NAMES - 1} more"
    hint = f"ask an administrator to remove it, and look who reads the root's gpucache/v1/locks/*{TOKEN}"
    raise UnsafeDirectoryError(taken, fact, hint)


def _paths(token: bytes) -> Iterator[str]:
    import hashlib

    parent = _parent()
    for number in range(_NAMES):
        digest = hashlib.sha256(token + str(number).encode()).hexdigest()
        yield f"{parent}/gpucache-{os.geteuid()}-{digest[:16]}"


def _parent() -> str:
    """The directory in which every process of the node may make one of its own, whatever its ``TMPDIR``."""
    is_usable = os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK | os.X_OK)
    # Whoever may follow no link comes there too.
    return os.path.realpath("/dev/shm" if is_usable else "/tmp")


def device_of_places() -> int:
    """The file system (``st_dev``) of the directories of locks that are in no root.

    Pods of one node may have a ``/dev/shm`` each: they see none of each other's locks there.
    """
    try:
        return os.stat(_parent()).st_dev
    except OSError:
        return 0


def _is_own(found: os.stat_result) -> bool:
    """Whether something is a directory of this user in which nobody else may write."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & others
    )
