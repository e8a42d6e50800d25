"""Source files that a recipe names: only what nobody else could have written is read, to be executed."""

from __future__ import annotations

import importlib.util
import os
import stat

from gpucache.disk.door import read_some
from gpucache.disk.vetting import Trust, vet
from gpucache.environment import TRUST_UIDS
from gpucache.errors import GpuCacheError, ProvisionError, UnsafeDirectoryError

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""A FIFO is opened at once, and then refused."""
_MOST_BYTES = 2**24
"""No source file is longer."""


class CannotImportError(GpuCacheError, ImportError):
    """A function that a recipe names cannot be had; ``reason`` says why, in a line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "", reason)
        self.reason = reason


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the line of its text that says most, whatever its class does."""
    try:
        lines = [line.strip() for line in str(error).splitlines()]
        said = list(filter(None, lines))
    except BaseException:
        said = []
    name = type(error).__name__
    return f"{name}: {_telling(error, said)[:300]}" if said else name


def _telling(error: BaseException, lines: list[str]) -> str:
    """Of several lines, that of the tool which found the error; that behind the source which Triton quotes."""
    for line in lines:
        if "; error " in line:
            return line
    bases = {cls.__name__ for cls in type(error).__mro__}
    if "CompilationError" not in bases:
        return lines[0]
    if lines[-1] == "^" and error.__cause__ is not None:
        # Triton 3.4 and before leaves that to the cause.
        return one_line(error.__cause__)
    return lines[-1]


def text_of(file: str, trust: Trust | None) -> str:
    """The text of a source file; with ``trust``, only if nobody else could have written it.

    Raises:
        CannotImportError: it cannot be read, or somebody else could have written it.
    """
    try:
        if trust is not None:
            _vet_way(file, trust)
        with open(os.open(file, _READ), "rb") as opened:
            found = os.fstat(opened.fileno())
            refused = _refused(found, trust)
            if refused is not None:
                raise CannotImportError(f"{file} {refused}, and is not executed")
            content = read_some(opened, _MOST_BYTES + 1)
    except (OSError, ProvisionError) as error:
        raise CannotImportError(f"{file}: {_cause(error)}") from error
    if len(content) > _MOST_BYTES:
        raise CannotImportError(f"{file} is longer than {_MOST_BYTES >> 20} MiB")
    try:
        return importlib.util.decode_source(content)
    except (SyntaxError, ValueError) as error:
        raise CannotImportError(f"{file}: {one_line(error)}") from error


def _cause(error: OSError | ProvisionError) -> str:
    if isinstance(error, ProvisionError):
        return error.problem
    return error.strerror or str(error)


def _vet_way(file: str, trust: Trust) -> None:
    """Vet the directories on the way to a file, and to what it is a link to.

    Raises:
        CannotImportError: one of them is another user's, or everybody may write it.
    """
    try:
        for path in sorted({os.path.abspath(file), os.path.realpath(file)}):
            vet(os.path.dirname(path), trust)
    except UnsafeDirectoryError as error:
        raise CannotImportError(f"{file} is not executed: {error.problem}") from error
    if os.path.islink(file) and not trust.covers(os.lstat(file).st_uid):
        raise CannotImportError(f"{file} is a link of another user's, and is not executed")


def _refused(found: os.stat_result, trust: Trust | None) -> str | None:
    """Why an open file may not be executed, if so."""
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file"
    if trust is None:
        return None
    if not trust.accepts(found):
        trusted = ",".join(map(str, sorted({*trust.uids, found.st_uid})))
        return f"belongs to uid {found.st_uid} (`{TRUST_UIDS.name}={trusted}` trusts it)"
    if found.st_mode & stat.S_IWOTH and not trust.world_writable:
        return "may be written by everybody (`chmod o-w` forbids that)"
    return None
