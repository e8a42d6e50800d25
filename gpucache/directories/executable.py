"""Which file a command runs, and whether that is this very Python, so that the command can import gpucache."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def which(command: str, environ: Mapping[str, str]) -> str | None:
    """The file that executing this command in this environment runs; None where there is none."""
    if os.path.dirname(command):
        candidates = [command]
    else:
        places = os.get_exec_path(environ)
        candidates = [os.path.join(place, command) for place in places]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def runs_this_python(command: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command is this very interpreter, or a script whose first line names it (as torchrun's does)."""
    file = which(command[0], environ)
    if file is None:
        return False
    return _is_this_python(file) or _is_this_python(_interpreter(file, environ))


def _is_this_python(executable: str | None) -> bool:
    """The same file in the same directory: a virtual environment's Python is a link to the one it was made with."""
    if not executable or not sys.executable:
        return False
    directory = os.path.dirname(os.path.abspath(executable))
    if directory != os.path.dirname(os.path.abspath(sys.executable)):
        return False
    return os.path.realpath(executable) == os.path.realpath(sys.executable)


def _interpreter(script: str, environ: Mapping[str, str]) -> str | None:
    """The interpreter that the ``#!`` line of a script names, looked up as ``env`` does where the line says so."""
    try:
        with open(script, "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    words = os.fsdecode(line[2:]).split()
    if len(words) > 1 and os.path.basename(words[0]) == "env":
        return which(words[1], environ)
    return words[0] if words else None
