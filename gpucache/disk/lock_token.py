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
from gpucache.disk.locks import REMOTE_FILES, ROOTS_LOCKS, let_go
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.sharing import GROUP, PRIVATE, new_aside, new_file
from gpucache.disk.vetting import is_groups
from gpucache.disk.within import Straight
from gpucache.errors import UnsafeDirectoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN_BYTES = 32
_DIGITS = frozenset(b"0123456789abcdef")
_WRITTEN_S = 10.0
"""A token that is not whole after so many seconds was left by a process that was killed, or by a full disk."""
_NAMES = 16
_KEPT_S = 30 * DAY_S
TOKEN = ".place"
"""How the name of a file ends that has the token of a node and user."""


# ---- the token


def _name(gid: int | None) -> str:
    return f"{node_id()}.{_whose(gid)}{TOKEN}"


def _whose(gid: int | None) -> str:
    """The part of a name that tells the user, or the group whose members share the locks."""
    return str(os.geteuid()) if gid is None else f"g{gid}"


def new_token() -> bytes:
    """32 hexadecimal digits that nobody can guess."""
    return os.urandom(_TOKEN_BYTES // 2).hex().encode()


def read_token(here: int, gid: int | None = None) -> bytes | None:
    """The token of this node and user, or group, in an open directory; None where there is none, or no whole one.

    A part of a token could be guessed, and with it the directory's name.
    """
    try:
        fd, _ = open_regular(_name(gid), os.O_RDONLY, here)
    except OSError:
        return None
    try:
        token = os.read(fd, _TOKEN_BYTES + 1)
    finally:
        os.close(fd)
    is_whole = len(token) == _TOKEN_BYTES and _DIGITS.issuperset(token)
    return token if is_whole else None


def published(here: int, token: bytes, gid: int | None = None) -> bytes | None:
    """Put a token into an open directory unless one is there; return the one that is there then.

    It appears whole. Only where a file can have no second name may a reader see a part of it for an instant.

    Raises:
        OSError: no file can be made there.
    """
    _forget_old(here)
    _sweep_old()
    name = _name(gid)
    _forget_broken(here, name, gid)
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
    return read_token(here, gid)


def _write_new(here: int, name: str, data: bytes) -> None:
    fd = new_file(name, os.O_WRONLY, here)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _forget_broken(here: int, name: str, gid: int | None) -> None:
    """Remove what is no token in a token's place, unless a process may be writing it at this moment.

    Whoever has put a good one there meanwhile, which goes too, reads with the next lock which one is there then.
    """
    with suppress(OSError):
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        if read_token(here, gid) is None and time.time() - found.st_mtime > _WRITTEN_S:
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
    # Of a group's, the sticky bit spares those of other members.
    prefixes = (f"gpucache-{os.geteuid()}-", "gpucache-g")
    with suppress(OSError), Straight() as disk:
        for name in os.listdir(parent):
            path = f"{parent}/{name}"
            if name.startswith(prefixes) and time.time() - disk.lstat(path).st_mtime > DAY_S:
                with suppress(OSError):
                    _remove_unused(path, disk)


def _remove_unused(directory: str, disk: Straight) -> None:
    """Remove a directory of locks in which there is no lock, but for a free one of `provision`, and of a remote's.

    Raises:
        OSError: something else is in it.
    """
    with disk.directory(directory) as here:
        for lock in ROOTS_LOCKS:
            for name in (lock, f"{lock}.holder"):
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


def make_place(path: str, gid: int | None) -> None:
    """Make the directory that a token names, of this user, or of a group and with its mode from the first moment.

    Raises:
        FileExistsError: something is there.
        OSError: it cannot be made.
    """
    if gid is None:
        os.mkdir(path, 0o700)
        return
    if os.path.lexists(path):
        raise FileExistsError(path)
    aside = new_aside(os.path.dirname(path), PRIVATE, f"gpucache-{os.geteuid()}-")
    try:
        os.chown(aside, -1, gid)
        os.chmod(aside, GROUP.directory)
        os.rename(aside, path)
    except OSError:
        os.rmdir(aside)
        if os.path.lexists(path):  # another member was faster
            raise FileExistsError(path) from None
        raise


def first_own(token: bytes, gid: int | None = None) -> str:
    """The first of the paths that a token gives at which nobody else has put something.

    Raises:
        UnsafeDirectoryError: there is none.
    """
    taken = ""
    for path in _paths(token, gid):
        try:
            found = os.lstat(path)
        except OSError:
            return path
        if _is_own(found, gid):
            return path
        taken = path
    fact = f"another user has put something there, and in the place of {_NAMES - 1} more"
    hint = f"ask an administrator to remove it, and look who reads the root's gpucache/v1/locks/*{TOKEN}"
    raise UnsafeDirectoryError(taken, fact, hint)


def _paths(token: bytes, gid: int | None) -> Iterator[str]:
    import hashlib

    parent = _parent()
    for number in range(_NAMES):
        digest = hashlib.sha256(token + str(number).encode()).hexdigest()
        yield f"{parent}/gpucache-{_whose(gid)}-{digest[:16]}"


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


def _is_own(found: os.stat_result, gid: int | None) -> bool:
    """Whether something is a directory of this user, or of the group, in which nobody else may write."""
    if gid is not None:
        is_directory = stat.S_ISDIR(found.st_mode)
        return is_directory and found.st_gid == gid and is_groups(found.st_mode)
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & others
    )
