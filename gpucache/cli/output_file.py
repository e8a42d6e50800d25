"""A file that a command writes: there whole afterwards, or as it was."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from gpucache.cli.terminal import OutputError, write_all
from gpucache.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    _Failure = Callable[[OSError], Exception]
    """Makes of a refusal of the operating system the error that names what could not be written."""

_ANOTHER_FILE = "name another file with --output, in a directory that is there and can be written"


@contextmanager
def whole_file(output: str, mode: int = 0o600, way_out: str = _ANOTHER_FILE) -> Iterator[BinaryIO]:
    """A stream to a file, which is there whole after the ``with`` block, or as it was; with this mode.

    What is no regular file, as a pipe, is written to as it is.

    Raises:
        ProvisionError: there can be no such file, or it cannot be written, as where its disk is full.
    """
    path = os.path.realpath(output)
    beside = None
    try:
        _check_link(output)
        if os.path.exists(output) and not stat.S_ISREG(os.stat(output).st_mode):
            fd = os.open(output, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        else:
            directory = os.path.dirname(path)
            fd, beside = tempfile.mkstemp(prefix=".gpucache-output-", dir=directory)
    except OSError as error:
        raise ProvisionError(output, error.errno or errno.EIO, way_out) from error

    def failure(error: OSError) -> ProvisionError:
        return ProvisionError(output, error.errno or errno.EIO, way_out, "write")

    try:
        # Unbuffered: what a buffer could not write it writes again as it is closed, and that error would hide ours.
        with os.fdopen(fd, "wb", 0) as file:
            yield _as_stream(file, failure)
            if beside is not None:
                _finish(fd, mode, beside, path, failure)
    except BaseException:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)
        raise


def _finish(fd: int, mode: int, beside: str, path: str, failure: _Failure) -> None:
    """Give a file that is written its mode and its name, once the disk has it."""
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
        os.rename(beside, path)
    except OSError as error:
        raise failure(error) from error


def _check_link(output: str) -> None:
    """Refuse a link that another user has put where everybody may write, as Linux does where nobody has it off.

    Else root, who writes a page into ``/tmp``, would write wherever the owner of the link wants
    (``fs.protected_symlinks``; a path that is resolved first passes that by).

    Raises:
        PermissionError: it is such a link.
    """
    if not os.path.islink(output):
        return
    owner = os.lstat(output).st_uid
    directory = os.stat(os.path.dirname(output) or ".")
    is_open = directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH
    if is_open and owner not in (os.geteuid(), directory.st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), output)


@contextmanager
def stdout_bytes() -> Iterator[BinaryIO]:
    """Stdout for bytes, which have all gone out after the ``with`` block.

    Raises:
        OutputError: stdout cannot be written.
    """
    if sys.stdout is None:
        raise OutputError(OSError(errno.EBADF, os.strerror(errno.EBADF)))
    sys.stdout.flush()
    out = _as_stream(sys.stdout.buffer, OutputError)
    yield out
    out.flush()


class _Stream:
    """A stream of bytes whose errors name what could not be written."""

    def __init__(self, out: BinaryIO, failure: _Failure) -> None:
        self._out = out
        self._failure = failure

    def write(self, data: bytes) -> int:
        try:
            write_all(self._out, data)
        except OSError as error:
            raise self._failure(error) from error
        return len(data)

    def flush(self) -> None:
        try:
            self._out.flush()
        except OSError as error:
            raise self._failure(error) from error


def _as_stream(out: Any, failure: _Failure) -> BinaryIO:
    """The stream, of which callers only write and flush."""
    return cast("BinaryIO", _Stream(out, failure))
