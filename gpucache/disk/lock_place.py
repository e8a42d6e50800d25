"""`LockPlace`: the directory in which the locks of a root are, which all processes of a node and user agree on.

That is ``gpucache/v1/locks`` in the root, unless the root is on a network file system, where ``flock`` may hold on one
node only, or hang with the server, or ``flock`` was tried there and does not work. Then it is a directory of this user
in ``/dev/shm`` or ``/tmp``, whose name is made of a random token that the node's first process has put into the root;
of a root that a group shares, a directory of that group, which the first member has made.
So nobody else can know the name before the directory is there, nor plant one; and if a directory of another user is
there after ours was swept, all processes go on to the same next name (`lock_token`, which a hit does not import).

Containers that share the root but not ``/dev/shm`` do not meet there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from gpucache.disk.files import make_below_root
from gpucache.disk.locks import can_be_asked
from gpucache.disk.mounts import is_local
from gpucache.disk.vetting import is_groups
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.within import Straight

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
        from gpucache.disk.lock_token import first_own, make_place

        gid = self._gid()
        path = first_own(token, gid)
        with suppress(FileExistsError):
            make_place(path, gid)
        return first_own(token, gid)  # another user may have been faster

    def found(self) -> str:
        """As `directory`, for those who only look: nothing is tried or made, and the directory may not be there.

        It may be another user's, if he has taken all names that it could have.
        """
        from gpucache.disk.lock_token import first_own, read_token

        try:
            here = self._open_inside()
        except OSError:
            return self.inside
        try:
            gid = shared_gid(here)
            token = read_token(here, gid)
        finally:
            os.close(here)
        if token is None:
            return self.inside
        try:
            return first_own(token, gid)
        except UnsafeDirectoryError as error:
            return error.path

    def _agreed(self) -> bytes | None:
        """The token by which the directory is named; None where the locks are in the root."""
        from gpucache.disk.lock_token import new_token, published, read_token

        if self._token is None and self._holds is None:
            self._holds = self._found_to_hold()
        elsewhere = self._token is not None or not self._holds
        try:
            if elsewhere:
                make_below_root(self.inside)
            here = self._open_inside()
        except OSError:
            return None
        try:
            gid = shared_gid(here)
            token = read_token(here, gid)
            if token is None and (elsewhere or self._holds_no_more(here)):
                token = published(here, self._token or new_token(), gid)
        except OSError:
            return None
        finally:
            os.close(here)
        self._token = token
        return token

    def _gid(self) -> int | None:
        """The group whose members share the locks; None where they are this user's own."""
        here = self._open_inside()
        try:
            return shared_gid(here)
        finally:
            os.close(here)

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
            return self._disk.open_directory(self.inside)
        return os.open(self.inside, _DIRECTORY)

    def _found_to_hold(self) -> bool:
        """Whether locks in the root hold among the processes of this node."""
        # A process that misses nothing never asks.
        from gpucache.disk.capabilities import known, learn

        if not is_local(self.inside):
            return False
        # To try something there, files are made by path.
        capabilities = learn(self.root) if self._disk is None else known(self.root)
        return capabilities is None or capabilities.flocks


def shared_gid(here: int) -> int | None:
    """The group whose members share an open directory of locks; None for a directory of one user's."""
    found = os.fstat(here)
    return found.st_gid if is_groups(found.st_mode) else None


def open_lock_directory(path: str, disk: Straight | None = None) -> int:
    """Open a directory of locks, to act in it by its descriptor. ``disk`` is for whoever may follow no link.

    Of a directory in one that everybody may write, such as ``/dev/shm``, only this user's own is opened, or that of a
    group whose number its name has, and no link.

    Raises:
        OSError: there is none, or it is another user's.
    """
    fd = _open_through_links(path) if disk is None else disk.open_directory(path)
    if not _is_agreed(fd, path) and _is_everyones(os.path.dirname(path)):
        os.close(fd)
        raise PermissionError(errno.EACCES, "it belongs to another user", path)
    return fd


def _is_agreed(fd: int, path: str) -> bool:
    """Whether an open directory is this user's, or one of the group after which the path is named."""
    if os.fstat(fd).st_uid == os.geteuid():
        return True
    gid = shared_gid(fd)
    return gid is not None and os.path.basename(path).startswith(f"gpucache-g{gid}-")


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
