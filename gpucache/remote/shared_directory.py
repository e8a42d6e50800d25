"""A remote that is a directory which several machines see: ``file:///shared/directory``.

Nothing in the directory is taken for what it was a moment ago: each step below it is opened by its own name, and no
link is followed. Where the URL says ``trust=owner``, entries need no signature, and each step must belong to a trusted
user then, as must the way to the directory (`gpucache.disk.vetting`).

Limit: a network file system that hangs holds the process that reads; a rank never does.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from gpucache.disk.door import DIRECTORY, SAFELY, open_regular
from gpucache.disk.files import sweep_old
from gpucache.disk.vetting import Trust, vet
from gpucache.errors import GpuCacheError, UnsafeDirectoryError
from gpucache.remote.bounded import BoundedReader, Deadline, as_file
from gpucache.remote.checking import checked
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.remote import Listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import BinaryIO

    from gpucache.remote.errors import RemoteKind, Tried
    from gpucache.remote.remote import Ability, CheckReport, Patience
    from gpucache.remote.url import RemoteUrl

UNFINISHED = ".gpucache-put-"
"""How the name of a file begins that is not whole yet; what a killed writer left goes after an hour."""
_MOST_DEEP = 6
_COPY_BYTES = 2**20
_BY_SIGNATURE = "have its owner put that right, or believe signatures instead (trust=NAME:KEY)"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_KINDS: dict[int, RemoteKind] = {
    errno.EACCES: "refused",
    errno.EPERM: "refused",
    errno.EROFS: "refused",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.ENOENT: "unreachable",
    errno.ENOTDIR: "unreachable",
    errno.ENOTCONN: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ETIMEDOUT: "timeout",
    errno.ELOOP: "bad-answer",  # a link, where gpucache makes none
    errno.EINVAL: "bad-answer",  # a FIFO, a socket
    errno.EISDIR: "bad-answer",
}


class _Target(NamedTuple):
    """The open directory in which an object has its name."""

    directory: int
    name: str
    model: os.stat_result
    """The `os.stat` of the shared directory, whose mode says who may read and write below it."""


class SharedDirectory:
    """The objects in a directory; a `Remote`."""

    def __init__(self, url: RemoteUrl, patience: Patience, environ: Mapping[str, str]) -> None:
        self.shown = url.shown
        self._url = url
        self._patience = patience
        self._owners = Trust.parse(environ) if url.is_by_owner else None

    @property
    def can(self) -> frozenset[Ability]:
        """As `Remote.can`. Where a mount makes no hard links, `put_new` looks and then renames."""
        if self._url.mode == "read":
            return frozenset({"list"})
        return frozenset({"list", "put", "put-if-absent", "delete"})

    def come_up(self) -> None:
        """As `Remote.come_up`: nothing is slow here."""

    @contextmanager
    def get(self, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
        """As `Remote.get`."""
        with ExitStack() as stack:
            with self._telling("get", name):
                fd, found = self._opened(name, stack)
            if found.st_size > limit_bytes:
                raise RemoteError(self.shown, "too-large", "get", name)

            def more(length: int) -> bytes:
                with self._telling("get", name):
                    return os.read(fd, length)

            def refusal(kind: RemoteKind) -> RemoteError:
                return RemoteError(self.shown, kind, "get", name)

            yield as_file(BoundedReader(more, limit_bytes, Deadline(self._patience), refusal))

    def put_new(self, name: str, path: str, replace: bool = False) -> bool:
        """As `Remote.put_new`: a whole file is linked, or renamed, to its name."""
        self._refuse_read_mode("put", name)
        source, _ = open_regular(path)
        with ExitStack() as stack:
            stack.callback(os.close, source)
            with self._telling("put", name):
                target = self._target(name, stack)
                if not replace and _is_there(target):
                    return False
                return _put(source, target, replace)

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `Remote.list`."""
        steps = [step for step in prefix.split("/") if step]
        with ExitStack() as stack, self._telling("list", prefix):
            try:
                here = self._walked(steps, stack)
            except NotThere:
                return
            yield from _listed(here, prefix, _MOST_DEEP)

    def delete(self, name: str) -> None:
        """As `Remote.delete`."""
        self._refuse_read_mode("delete", name)
        with ExitStack() as stack, self._telling("delete", name), suppress(NotThere):
            *above, last = name.split("/")
            here = self._walked(above, stack)
            with suppress(FileNotFoundError):
                os.unlink(last, dir_fd=here)

    def check(self) -> CheckReport:
        """As `Remote.check`."""
        return checked(self, self._url.mode)

    def _opened(self, name: str, stack: ExitStack) -> tuple[int, os.stat_result]:
        """The descriptor of an object's file, and its `os.stat`."""
        *above, last = name.split("/")
        here = self._walked(above, stack, name)
        try:
            fd, found = open_regular(last, here=here)
        except FileNotFoundError:
            raise NotThere(self.shown, name) from None
        stack.callback(os.close, fd)
        self._refuse_foreign(name, found)
        return fd, found

    def _base(self, stack: ExitStack) -> int:
        """A descriptor of the shared directory, which must be there: gpucache makes none on a disk that is not meant.

        Raises:
            UnsafeDirectoryError: the directory is trusted by its owners, and another user can write there.
            OSError: the directory cannot be opened.
        """
        path = self._url.path
        if self._owners is not None:
            _vet(path, self._owners)
        base = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, base)
        self._refuse_foreign("", os.fstat(base))
        return base

    def _walked(self, steps: Sequence[str], stack: ExitStack, wanted: str = "") -> int:
        """A descriptor of a directory below the shared one.

        Raises:
            NotThere: there is no such directory.
        """
        here = self._base(stack)
        for number, step in enumerate(steps):
            try:
                here = os.open(step, DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                raise NotThere(self.shown, wanted or "/".join(steps)) from None
            stack.callback(os.close, here)
            self._refuse_foreign("/".join(steps[: number + 1]), os.fstat(here))
        return here

    def _target(self, name: str, stack: ExitStack) -> _Target:
        """Where an object is to have its name; missing directories are made, with the shared directory's mode."""
        *above, last = name.split("/")
        here = self._base(stack)
        model = os.fstat(here)
        for step in above:
            with suppress(FileExistsError):
                os.mkdir(step, 0o700, dir_fd=here)
                _open_as(step, here, model)
            here = os.open(step, DIRECTORY, dir_fd=here)
            stack.callback(os.close, here)
            self._refuse_foreign(step, os.fstat(here))
        return _Target(here, last, model)

    def _refuse_foreign(self, name: str, found: os.stat_result) -> None:
        """Refuse what another user could have written, where the owners alone vouch for what lies here.

        Raises:
            UnsafeDirectoryError: it belongs to a user who is not trusted, or everybody may write it.
        """
        owners = self._owners
        if owners is None:
            return
        path = os.path.join(self._url.path, name)
        if not owners.covers(found.st_uid):
            raise UnsafeDirectoryError(path, f"belongs to uid {found.st_uid}", _BY_SIGNATURE)
        if found.st_mode & stat.S_IWOTH and not owners.world_writable:
            raise UnsafeDirectoryError(path, "everybody may write it", _BY_SIGNATURE)

    def _refuse_read_mode(self, tried: Tried, name: str) -> None:
        if self._url.mode == "read":
            detail = "its URL does not say mode=write"
            raise RemoteError(self.shown, "misconfigured", tried, name, detail)

    @contextmanager
    def _telling(self, tried: Tried, name: str) -> Iterator[None]:
        """Make what the operating system refuses a `RemoteError`."""
        try:
            yield
        except OSError as error:
            if isinstance(error, GpuCacheError):
                raise
            number = error.errno or errno.EIO
            kind = _KINDS.get(number, "server")
            raise RemoteError(self.shown, kind, tried, name, os.strerror(number)) from error


def _vet(path: str, owners: Trust) -> None:
    try:
        vet(path, owners)
    except UnsafeDirectoryError as error:
        raise UnsafeDirectoryError(error.path, error.fact, _BY_SIGNATURE) from None


def _open_as(name: str, here: int, model: os.stat_result) -> None:
    """Give a directory that was just made the mode of the shared one, so that its writers and readers are the same."""
    fd = os.open(name, DIRECTORY, dir_fd=here)
    try:
        with suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(model.st_mode))
    finally:
        os.close(fd)


def _is_there(target: _Target) -> bool:
    try:
        os.stat(target.name, dir_fd=target.directory, follow_symlinks=False)
        return True
    except FileNotFoundError:
        return False


def _put(source: int, target: _Target, replace: bool) -> bool:
    """Copy an open file to a temporary one beside the target, and give that the target's name."""
    unfinished = f"{UNFINISHED}{secrets.token_hex(8)}"
    here = target.directory
    mode = stat.S_IRUSR | stat.S_IWUSR | (target.model.st_mode & 0o444)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o600, dir_fd=here)
    try:
        try:
            with suppress(OSError):  # where there is no /proc
                sweep_old(f"/proc/self/fd/{here}", UNFINISHED, os.fstat(fd).st_mtime)
            _copy(source, fd)
            os.fchmod(fd, mode)
            _sync(fd)
        finally:
            os.close(fd)
        return _named(unfinished, target, replace)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=here)


def _copy(source: int, target: int) -> None:
    while part := os.read(source, _COPY_BYTES):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(target, rest) :]


def _sync(fd: int) -> None:
    """Bring a file to the disk first: one that a power cut emptied would keep its name, and never be put again."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _named(unfinished: str, target: _Target, replace: bool) -> bool:
    """Give a whole file the target's name; returns whether that is now its name."""
    here = target.directory
    if not replace:
        try:
            os.link(unfinished, target.name, src_dir_fd=here, dst_dir_fd=here)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        if _is_there(target):
            return False
    os.rename(unfinished, target.name, src_dir_fd=here, dst_dir_fd=here)
    return True


def _listed(here: int, prefix: str, depth: int) -> Iterator[Listed]:
    """What lies in an open directory and below; links, unfinished files and what vanishes meanwhile are left out."""
    with os.scandir(here) as items:  # a directory may hold more than a list of its names should
        for item in items:
            if not item.name.startswith("."):
                with suppress(FileNotFoundError):
                    yield from _item(here, item.name, prefix, depth)


def _item(here: int, name: str, prefix: str, depth: int) -> Iterator[Listed]:
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        yield Listed(f"{prefix}{name}", found.st_size, found.st_mtime)
    elif stat.S_ISDIR(found.st_mode) and depth > 0:
        inner = os.open(name, DIRECTORY, dir_fd=here)
        try:
            yield from _listed(inner, f"{prefix}{name}/", depth - 1)
        finally:
            os.close(inner)
