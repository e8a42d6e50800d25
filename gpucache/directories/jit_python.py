"""Which Python runs a program, told by files alone: gpucache is often installed in an environment of its own.

Nothing is executed. A program is a Python, has a Python in its ``#!`` line (``vllm``, ``torchrun``), or is something
else, such as a shell script, of which nothing is known.
"""

from __future__ import annotations

import os
import re
import sys

from gpucache.disk.door import read_head
from gpucache.environment import PYTHON_PATH
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_BYTES = 4096
_ENV = "env"
_LIBRARY = re.compile(r"python(\d+)\.(\d+)(t?)")


class Python(Value):
    """A Python: what its extension modules are built for, and where it finds packages."""

    tag: str
    """``cp311``; with a ``t`` at the end for one without a global lock."""
    path: tuple[str, ...]
    """Directories of packages, as in ``sys.path``."""


def this_python() -> Python:
    """The Python that runs gpucache."""
    flags = getattr(sys, "abiflags", "")
    return Python(f"cp{sys.version_info.major}{sys.version_info.minor}{flags}", tuple(sys.path))


def python_of(program: str, environ: Mapping[str, str]) -> Python:
    """The Python that runs a program, which `PATH` in ``environ`` finds; gpucache's own where that is not known."""
    interpreter = _interpreter(which(program, environ), environ)
    if interpreter is None:
        return this_python()
    # Not the real path: the Python of an environment is a link to another, which has other packages.
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(interpreter)))
    if os.path.realpath(prefix) == os.path.realpath(sys.prefix):
        return this_python()
    return _installed(prefix, interpreter, environ) or this_python()


def which(program: str, environ: Mapping[str, str]) -> str | None:
    """The file that runs when a program is executed in an environment; None where there is no such file."""
    if os.path.dirname(program):
        return program
    for directory in os.get_exec_path(environ):
        path = os.path.join(directory, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _interpreter(path: str | None, environ: Mapping[str, str]) -> str | None:
    """The Python that executes a file; None where the file is none, and names none in its first line."""
    if path is None or _is_python(path):
        return path
    try:
        first = os.fsdecode(read_head(path, _MOST_BYTES)).partition("\n")[0]
    except OSError:
        return None
    if not first.startswith("#!"):
        return None
    words = first[2:].split()
    if words and os.path.basename(words[0]) == _ENV:
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        return which(words[0], environ) if words and _is_python(words[0]) else None
    return words[0] if words and _is_python(words[0]) else None


def _is_python(path: str) -> bool:
    return os.path.basename(path).startswith("python")


def _installed(prefix: str, interpreter: str, environ: Mapping[str, str]) -> Python | None:
    """The Python of an environment; None where there is none, or several and no link tells which."""
    try:
        names = [name for name in os.listdir(f"{prefix}/lib") if _LIBRARY.fullmatch(name)]
    except OSError:
        return None
    linked = os.path.basename(os.path.realpath(interpreter))
    if linked in names:
        names = [linked]
    if len(names) != 1:
        return None
    match = _LIBRARY.fullmatch(names[0])
    assert match is not None
    major, minor, free = match.groups()
    before = (PYTHON_PATH.text(environ) or "").split(os.pathsep)
    packages = _all_packages(prefix, names[0], environ)
    return Python(f"cp{major}{minor}{free}", (*filter(None, before), *packages))


def _all_packages(prefix: str, name: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Where a Python looks for packages, in its order (CPython 3.11, `site.py`): first a venv's, if it is one.

    Then the user's and the system's, which a venv has only if it was made with ``--system-site-packages``.
    """
    settings = _venv_settings(prefix)
    if settings is not None:
        yield from _packages(prefix, name)
        if settings.get("include-system-site-packages", "").lower() != "true":
            return
        prefix = os.path.dirname(settings.get("home", ""))
    home = environ.get("HOME")
    if home:
        yield f"{home}/.local/lib/{name}/site-packages"
    yield from _packages(prefix, name)


def _venv_settings(prefix: str) -> dict[str, str] | None:
    """What ``pyvenv.cfg`` says; None where a prefix is no venv's."""
    try:
        text = os.fsdecode(read_head(f"{prefix}/pyvenv.cfg", _MOST_BYTES))
    except OSError:
        return None
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        found[key.strip()] = value.strip()
    return found


def _packages(prefix: str, name: str) -> tuple[str, ...]:
    """Where packages are: of an environment, and of Debian's own Python, which has three places."""
    return (
        f"{prefix}/local/lib/{name}/dist-packages",
        f"{prefix}/lib/python3/dist-packages",
        f"{prefix}/lib/{name}/site-packages",
    )
