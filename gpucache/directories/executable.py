"""Which file a command runs, and whether that is this very Python, so that the command can import gpucache."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def which(command: str, environ: Mapping[str, str]) -> str | None:
    """The file that runs when this command is executed in this environment; None where there is no such file."""
    if os.path.dirname(command):
        candidates = [command]
    else:
        places = os.get_exec_path(environ)
        candidates = [os.path.join(place, command) for place in places]
    for candidate in candidates:
        if _is_executable_file(candidate):
            return candidate
    return None


def _is_executable_file(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    return os.access(path, os.X_OK)


def runs_this_python(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command is this very interpreter, or a script whose first line names it (as torchrun's does)."""
    file = which(command[0], environ)
    if file is None:
        return False
    if _is_this_python(file):
        return True
    interpreter = _interpreter(file, environ)
    return _is_this_python(interpreter)


def _is_this_python(executable: str | None) -> bool:
    """Whether a path leads to the running interpreter's file, from the same directory.

    The file alone does not tell: the Python of a virtual environment is a link to the Python that made the environment.
    """
    if not executable or not sys.executable:
        return False
    if _directory(executable) != _directory(sys.executable):
        return False
    return os.path.realpath(executable) == os.path.realpath(sys.executable)


def _directory(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _interpreter(script: str, environ: Mapping[str, str]) -> str | None:
    """The interpreter that the ``#!`` line of a script names, looked up as ``env`` does where the line says so."""
    try:
        with open(script, "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    text = os.fsdecode(line).removeprefix("#!")
    words = text.split()
    if not words:
        return None
    program = words[0]
    if os.path.basename(program) == "env" and len(words) > 1:
        return which(words[1], environ)
    return program
