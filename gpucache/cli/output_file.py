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
    from typing import BinaryIO

_ANOTHER_FILE = "name another file with --output, in a directory that is there and can be written"


@contextmanager
def whole_file(output: str, mode: int = 0o600, way_out: str = _ANOTHER_FILE) -> Iterator[BinaryIO]:
    """A stream to a file, which is there whole after the ``with`` block, or as it was; with this mode.

    What is no regular file, as a pipe, is written to as it is.

    Raises:
        ProvisionError: there can be no such file, or its disk is full.
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
    if beside is None:
        with os.fdopen(fd, "wb") as file:
            yield file
        return
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


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


class _Stdout:
    """Stdout as a stream of bytes, whose errors are told as those of all other output."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OutputError(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        sys.stdout.flush()
        self._out = sys.stdout.buffer

    def write(self, data: bytes) -> int:
        try:
            write_all(self._out, data)
        except OSError as error:
            raise OutputError(error) from error
        return len(data)

    def flush(self) -> None:
        try:
            self._out.flush()
        except OSError as error:
            raise OutputError(error) from error


@contextmanager
def stdout_bytes() -> Iterator[BinaryIO]:
    """Stdout for bytes, which have all gone out after the ``with`` block.

    Raises:
        OutputError: stdout cannot be written.
    """
    out = _Stdout()
    yield cast("BinaryIO", out)
    out.flush()
