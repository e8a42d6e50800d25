"""`Straight`: the operations of `os` on paths that lead through no link, in directories that are held open.

Between a look and an act a path may be made to lead elsewhere: whoever owns a directory on the way puts a link in its
place, and root's `gpucache prune` of his cache would delete another user's files. So whoever removes, moves or repairs
what lies below a root does all of that through an object of this class. It walks from ``/`` with ``O_NOFOLLOW`` at each
step, and acts by the descriptor of the directory that it has come to (``dir_fd``).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress

from gpucache.disk.door import DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import TypeVar

    from gpucache.disk.sharing import Modes

    T = TypeVar("T")

_STEP = (
    # Linux's: a directory may be walked through that may not be listed
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)
_MOST_OPEN = 64


class Straight:
    """What `os` does, for absolute paths without a link on the way; the last part of a path is never followed.

    All but the innermost directory of each path are held open until `close`, at most 64: what is at such a path is
    looked for once, and stays what it was. One thread at a time may use an object.

    Every method raises `OSError` as `os` does, and ``ELOOP`` with the path of a link that is on the way.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def __enter__(self) -> Straight:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all directories. What is done afterwards opens them anew."""
        while self._held:
            _, fd = self._held.popitem()
            with suppress(OSError):
                os.close(fd)

    # ---- what `os` does

    def lstat(self, path: str) -> os.stat_result:
        """As `os.lstat`."""
        return self.act(path, _lstat)

    def lexists(self, path: str) -> bool:
        """Whether something is there; False also where a link is on the way, or the way may not be walked."""
        try:
            self.act(path, _lstat)
        except OSError:
            return False
        return True

    def listdir(self, path: str) -> list[str]:
        """As `os.listdir`."""
        with self.directory(path) as fd:
            return os.listdir(fd)

    def mkdir(self, path: str) -> None:
        """As `os.mkdir`, with mode 0700, but for what lies in a root that others share (`disk.sharing.modes_for`)."""
        from gpucache.disk.sharing import modes_for  # few removals make a directory

        modes = modes_for(path)
        self.act(path, lambda fd, name: _mkdir(fd, name, modes))

    def unlink(self, path: str) -> None:
        """As `os.unlink`."""
        self.act(path, _unlink)

    def rmdir(self, path: str) -> None:
        """As `os.rmdir`."""
        self.act(path, _rmdir)

    def rename(self, source: str, target: str) -> None:
        """As `os.rename`."""
        if os.path.dirname(source) == os.path.dirname(target):
            beside = os.path.basename(target)
            self.act(source, lambda fd, name: _rename(name, beside, fd, fd))
            return

        def rename(fd: int, name: str) -> None:
            self.act(target, lambda to, new: _rename(name, new, fd, to))

        self.act(source, rename)

    def link(self, source: str, target: str) -> None:
        """As `os.link`; what is linked may be a link itself."""

        def link(fd: int, name: str) -> None:
            def to_target(to: int, new: str) -> None:
                os.link(name, new, src_dir_fd=fd, dst_dir_fd=to, follow_symlinks=False)

            self.act(target, to_target)

        self.act(source, link)

    def open_directory(self, path: str) -> int:
        """A descriptor of a directory, which the caller closes."""
        return self.act(path, open_directory)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor of a directory, for the length of a ``with`` block."""
        fd = self.open_directory(path)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def held(self, path: str) -> Iterator[str]:
        """Another path of a directory, which leads to this very directory for the length of a ``with`` block.

        For whoever makes files in it by path. Where ``/proc`` is not mounted it is the path itself, which may be made
        to lead elsewhere meanwhile. An error that is raised in the block names the directory by its own path.
        """
        with self.directory(path) as fd:
            other = f"/proc/self/fd/{fd}"
            if not os.path.isdir(other):
                other = path
            try:
                yield other
            except OSError as error:
                named = error.filename
                if isinstance(named, str) and named.startswith(other):
                    error.filename = path + named.removeprefix(other)
                raise

    # ---- where it does so

    def act(self, path: str, act: Callable[[int, str], T]) -> T:
        """Do something in the directory of a path: ``act`` gets the directory's descriptor and the path's last part."""
        directory, _, name = path.rpartition("/")
        outer, _, inner = directory.rpartition("/")
        # A descriptor of its own: those that are held may all be closed by the next path.
        fd = _step(self._hold(outer or "/"), inner or ".", directory)
        try:
            return act(fd, name or ".")
        except OSError as error:
            error.filename, error.filename2 = path, None
            raise
        finally:
            os.close(fd)

    def _hold(self, directory: str) -> int:
        """The descriptor of a directory, which is walked to unless it is held."""
        fd = self._held.get(directory)
        if fd is not None:
            return fd
        if len(self._held) >= _MOST_OPEN:
            self.close()
        if directory == "/":
            fd = os.open("/", _STEP)
        else:
            outer, _, name = directory.rpartition("/")
            fd = _step(self._hold(outer or "/"), name, directory)
        self._held[directory] = fd
        return fd


def _step(fd: int, name: str, path: str) -> int:
    """Open a directory in an open one; ``path`` is its own.

    Raises:
        OSError: there is none; with `errno.ELOOP` where a link is in its place.
    """
    try:
        return os.open(name, _STEP, dir_fd=fd)
    except NotADirectoryError:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        number = errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.ENOTDIR
        raise OSError(number, os.strerror(number), path) from None
    except OSError as error:
        error.filename = path
        raise


def _lstat(fd: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=fd, follow_symlinks=False)


def _mkdir(fd: int, name: str, modes: Modes) -> None:
    from gpucache.disk.sharing import set_directory_mode

    os.mkdir(name, 0o700, dir_fd=fd)
    set_directory_mode(name, modes, fd)


def _rename(source: str, target: str, source_fd: int, target_fd: int) -> None:
    os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


def _unlink(fd: int, name: str) -> None:
    os.unlink(name, dir_fd=fd)


def _rmdir(fd: int, name: str) -> None:
    os.rmdir(name, dir_fd=fd)


def open_directory(fd: int, name: str) -> int:
    """Open, to list what is in it, a directory that is in an open one and no link.

    Raises:
        OSError: there is none, or this user may not.
    """
    return os.open(name, DIRECTORY, dir_fd=fd)


DEEPEST = 100
"""So many directories in one another are removed; what lies deeper was put there by nobody but to hurt, and stays."""


def remove_tree_in(fd: int, name: str, depth: int = 0) -> None:
    """Remove a directory that is in an open one and no link, with all that is in it; what cannot be removed stays.

    ``depth`` is how deep in what is removed it lies.
    """
    with suppress(OSError):
        here = open_directory(fd, name)
        try:
            empty(here, depth + 1)
        finally:
            os.close(here)
    # Also where it may not be opened: an empty one goes all the same, as what a killed member of a group has left.
    with suppress(OSError):
        os.rmdir(name, dir_fd=fd)


def empty(fd: int, depth: int = 0) -> None:
    """Remove all that is in an open directory; links are removed, not followed, and what cannot be removed stays.

    ``depth`` is as in `remove_tree_in`.

    Raises:
        OSError: the directory cannot be listed.
    """
    if depth > DEEPEST:
        return
    with os.scandir(fd) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                remove_tree_in(fd, item.name, depth)
            else:
                with suppress(OSError):
                    os.unlink(item.name, dir_fd=fd)
