"""The settings of a command: its environment, and what files say behind that. Imports no click.

What is wrong in a file is said on stderr, once for each command.
"""

from __future__ import annotations

import os

from gpucache.cli.terminal import say
from gpucache.configuration import Merged, in_force

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_said: set[str] = set()


def settings_of(root: str | None) -> Mapping[str, str]:
    """The settings of a command whose option ``--root`` has this value: environment and files as one mapping."""
    given = os.environ
    found = in_force(given, root)
    for problem in found.problems:
        text = str(problem)
        if text not in _said:
            _said.add(text)
            say(f"warning: {text}")
    return Merged(found.environ, given)


def undoing(name: str, root: str | None) -> str:
    """How a person takes back a setting: from the environment, or from the file that has it."""
    origin = in_force(os.environ, root).origins.get(name)
    return f"unset {name}" if origin is None else f"take it out of {origin}"


def begin() -> None:
    """Have the next command say anew what is wrong in files."""
    _said.clear()
