"""`LockPlace`: the directory in which the locks of a root are, which all processes of a node and user agree on.

That is ``gpucache/v1/locks`` in the root, unless the root is on a network file system, where ``flock`` may hold on one
node only, or hang with the server, or ``flock`` was tried there and does not work. Then it is a directory of this user
in ``/dev/shm`` or ``/tmp``, whose name is made of a random token that the node's first process has put into the root.
So nobody else can know the name before the directory is there, nor plant one; and if a directory of another user is
there after ours was swept, all processes go on to the same next name.

Containers that share the root but not ``/dev/shm`` do not meet there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress

from gpucache.disk.door import open_regular
from gpucache.disk.files import make_directory
from gpucache.disk.locks import PROVISION_LOCK, can_be_asked
from gpucache.disk.mounts import is_local
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.within import Straight, open_directory
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_TOKEN_BYTES = 32
_DIGITS = frozenset(b"0123456789abcdef")
_WRITTEN_S = 10.0
"""A token that is not whole after so many seconds was left by a process that was killed, or by a full disk."""
_NAMES = 16
_KEPT_S = 30 * 86400.0
TOKEN = ".place"
"""How the name of a file ends that has the token of a node and user."""


class LockPlace:
    """Where the locks of one root are. Any thread may ask, at each lock: the answer may change with the disk."""

    def __init__(self, root: str, disk: Straight | None = None) -> None:
        """``disk`` is for whoever may follow no link below the root, which is a real path then."""
        self.root = root
        self.inside = paths.ours(root, "locks")
        self._disk = disk
        self._token: bytes | None = None
        self._holds: bool | None = None
        self._is_asked = True

    def directory(self) -> str:
        """The directory for locks; it is made if it is one of this node's.

        What the first process of the node has found stands in the root, so that all the others go there, also those
        that have taken locks elsewhere before. A token that was swept is put back by whoever still knows it. Where none
        can be written, as on a read-only disk, the locks are those in the root.

        Raises:
            UnsafeDirectoryError: another user has taken all names that the directory could have.
            OSError: the directory cannot be made.
        """
        token = self._agreed()
        if token is None:
            return self.inside
        path = _first_own(token)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        return _first_own(token)  # another user may have been faster

    def found(self) -> str:
        """As `directory`, for those who only look: nothing is tried or made, and the directory may not be there.

        It may be another user's, if he has taken all names that it could have.
        """
        try:
            here = self._open_inside()
        except OSError:
            return self.inside
        try:
            token = _read_token(here)
        finally:
            os.close(here)
        if token is None:
            return self.inside
        try:
            return _first_own(token)
        except UnsafeDirectoryError as error:
            return error.path

    def _agreed(self) -> bytes | None:
        """The token by which the directory is named; None where the locks are in the root."""
        if self._token is None and self._holds is None:
            self._holds = self._found_to_hold()
        elsewhere = self._token is not None or not self._holds
        try:
            if elsewhere:
                make_directory(self.inside)
            here = self._open_inside()
        except OSError:
            return None
        try:
            token = _read_token(here)
            if token is None and (elsewhere or self._holds_no_more(here)):
                token = _published(here, self._token or _new_token())
        except OSError:
            return None
        finally:
            os.close(here)
        self._token = token
        return token

    def _holds_no_more(self, here: int) -> bool:
        """Whether ``flock`` has ceased to work in the root since it was tried there, as where a lock daemon has gone.

        ``here`` is the open directory. Whoever begins a turn of eviction in the same instant begins it later.
        """
        from gpucache.disk.capabilities import learn

        if not self._is_asked or can_be_asked(here):
            return False
        capabilities = learn(self.root, again=True) if self._disk is None else None
        if capabilities is not None and capabilities.flocks:
            self._is_asked = False  # files can be locked there, and only directories not
            return False
        self._holds = False
        return True

    def _open_inside(self) -> int:
        if self._disk is not None:
            return self._disk.act(self.inside, open_directory)
        return os.open(self.inside, _DIRECTORY)

    def _found_to_hold(self) -> bool:
        """Whether locks in the root hold among the processes of this node."""
        from gpucache.disk.capabilities import (  # a process that misses nothing never asks
            known,
            learn,
        )

        if not is_local(self.inside):
            return False
        # To try something there, files are made by path.
        capabilities = learn(self.root) if self._disk is None else known(self.root)
        return capabilities is None or capabilities.flocks


# ---- the token


def _name() -> str:
    return f"{node_id()}.{os.geteuid()}{TOKEN}"


def _new_token() -> bytes:
    return os.urandom(_TOKEN_BYTES // 2).hex().encode()


def _read_token(here: int) -> bytes | None:
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


def _published(here: int, token: bytes) -> bytes | None:
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
    return _read_token(here)


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
        if _read_token(here) is None and time.time() - found.st_mtime > _WRITTEN_S:
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
    """Remove a directory of locks in which there is no lock, but for a free one of `provision`.

    Raises:
        OSError: something else is in it.
    """
    with disk.directory(directory) as here:
        for name in (PROVISION_LOCK, f"{PROVISION_LOCK}.holder"):
            with suppress(FileNotFoundError):
                _remove_if_free(here, name)
    disk.rmdir(directory)


def _remove_if_free(here: int, name: str) -> None:
    """Remove a file unless it is locked. filelock looks, once it has a lock, whether its file is still there."""
    fd, _ = open_regular(name, os.O_RDONLY, here)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=here)
    finally:
        os.close(fd)


def _first_own(token: bytes) -> str:
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


def elsewhere() -> int:
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


def open_lock_directory(path: str, disk: Straight | None = None) -> int:
    """Open a directory of locks, to act in it by its descriptor. ``disk`` is for whoever may follow no link.

    Of a directory in one that everybody may write, such as ``/dev/shm``, only this user's own is opened, and no link.

    Raises:
        OSError: there is none, or it is another user's.
    """
    walked = None if disk is None else disk.act(path, open_directory)
    fd = _open_through_links(path) if walked is None else walked
    if os.fstat(fd).st_uid != os.geteuid() and _is_everyones(os.path.dirname(path)):
        os.close(fd)
        raise PermissionError(errno.EACCES, "it belongs to another user", path)
    return fd


def _open_through_links(path: str) -> int:
    """Open a directory, through a link only where not everybody could have put it there."""
    try:
        return os.open(path, _DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        if not is_link or _is_everyones(os.path.dirname(path)):
            raise
        return os.open(path, _DIRECTORY)


def _is_everyones(directory: str) -> bool:
    return bool(os.stat(directory).st_mode & stat.S_IWOTH)
