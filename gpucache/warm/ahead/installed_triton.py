"""Which Triton a Python would import, found by looking for its files: nothing is imported, nothing executed."""

from __future__ import annotations

import os
import re
import sys

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD_BYTES = 4096
_VERSION = re.compile(rb"""^__version__ = ['"]([^'"]{1,64})['"]""", re.MULTILINE)
"""As ``triton/__init__.py`` of 3.2.0 to 3.9.0 has it in its first line."""
_LIBRARY = "_C/libtriton.so"


class Installed(Value):
    """A Triton as it is installed."""

    directory: str
    version: str
    """As its ``__init__.py`` says; ``""`` where that says nothing that can be read."""
    stamp: str
    """Changes with each installation: the sizes and times of ``__init__.py`` and of the compiled library."""


def installed_triton(path: Sequence[str] | None = None) -> Installed | None:
    """The Triton of the first directory of ``sys.path``, or of ``path``, that has one; None where none has.

    Limit: an edit in another file of Triton's, as in a development checkout, is not noticed. Triton's own key is.
    """
    for place in sys.path if path is None else path:
        directory = os.path.join(place or ".", "triton")
        init = f"{directory}/__init__.py"
        try:
            with open(init, "rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError:
            continue
        match = _VERSION.search(head)
        version = "" if match is None else match[1].decode("utf-8", "replace")
        stamps = [stamp_of(file) or "none" for file in (init, f"{directory}/{_LIBRARY}")]
        return Installed(directory, version, " ".join(stamps))
    return None


def stamp_of(path: str) -> str | None:
    """What changes when a file is written or replaced: its size and time; None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f"{found.st_size}:{found.st_mtime_ns}"
