"""The lines of a kernel's forms in MLIR (``source``, ``ttir``, ``ttgir``), without locations, and where each stands.

As Triton 3.2.0, 3.4.0, 3.6.0 and 3.9.0 print them: ``… : i32 loc(#loc15)``, and elsewhere ``#loc15 =
loc("offsets"(#loc1))``, ``#loc1 = loc("/work/tune.py":8:15)``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_QUOTED = r'(?:[^()"]|"[^"]*")'
LOCATION = re.compile(rf" ?\bloc\((?:{_QUOTED}|\((?:{_QUOTED}|\({_QUOTED}*\))*\))*\)")
_DEFINED = re.compile(
    r'^(#loc\d*) = loc\((?:"([^"]*)":(\d+):\d+|"[^"]*"\((#loc\d*)\))\)', re.MULTILINE
)
_USED = re.compile(r"\bloc\((#loc\d*)\)\s*$")
_NO_CODE = ("#loc", "tt.func public")
"""How the lines of a form begin that are no code."""
_MOST_STEPS = 16


class CodeLine(NamedTuple):
    """A line of code of a form."""

    text: str
    location: str | None
    """``#loc15``, by which `Places` finds the line of Python; None where the line has none."""


def code_lines(text: str) -> list[CodeLine]:
    """The lines of a form that are code, without locations."""
    found = []
    for line in text.splitlines():
        used = _USED.search(line)
        bare = LOCATION.sub("", line).strip()
        if bare and not bare.startswith(_NO_CODE):
            found.append(CodeLine(bare, None if used is None else used[1]))
    return found


class Places:
    """Where the locations of a form are in Python."""

    def __init__(self, text: str) -> None:
        self._known: dict[str, tuple[str, str]] = {}
        self._named: dict[str, str] = {}
        for name, file, line, other in _DEFINED.findall(text):
            if other:
                self._named[name] = other
            else:
                self._known[name] = (file, line)

    def place(self, location: str | None) -> str | None:
        """The file and line of a location, ``/work/tune.py:8``; None where the form does not say it."""
        for _ in range(_MOST_STEPS):
            if location is None:
                return None
            if location in self._known:
                return ":".join(self._known[location])
            location = self._named.get(location)
        return None
