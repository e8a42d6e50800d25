"""Reads the TOML of a file of settings; the only door to `tomllib`, and to `tomli` where Python has none.

The import takes as long as a bare Python takes to start, so that only a process does it for which no parsed form holds
(`gpucache.configuration.form`).
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from gpucache.configuration.parsed import Line, Parsed, Problem
from gpucache.environment import PREFIX, TRUST_GROUPS, VARIABLES, Variable, is_key_file
from gpucache.errors import shortened
from gpucache.near import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from gpucache.configuration.places import Source

BY_NAME = {variable.name_in_file: variable for variable in VARIABLES if variable.in_file}
"""The settings that files may hold, by their names there."""
_MOST_PROBLEMS = 20
"""So many are told of a file whose names are no settings."""
_MOST_LOOKS = 4
_LONGEST_LINE = 2048
"""For a name with as many dots as fit into a file `tomllib` takes half a minute (3.11), quadratically; a name is within
one line."""


def parse(source: Source, path: str, content: bytes) -> Parsed:
    """All that the content of a file says; what cannot be read is a problem, and never an error."""
    try:
        text = content.decode("utf-8-sig")
        longest = max(map(len, text.split("\n")))
        if longest > _LONGEST_LINE:
            return _unreadable(source, path, f"it has a line of {longest} letters")
        settings = tomllib.loads(text)
    except UnicodeDecodeError as error:
        fact = f"it is no UTF-8 text (byte {error.start})"
        return _unreadable(source, path, fact)
    except ValueError as error:
        return _unreadable(source, path, f"it is no TOML: {error}")
    except RecursionError:
        return _unreadable(source, path, "it is nested too deep to be settings")
    lines: dict[str, Line] = {}
    problems: list[Problem] = []
    lasts = True
    for name, value in settings.items():
        if name not in BY_NAME and len(problems) >= _MOST_PROBLEMS:
            continue  # a file of thousands is none of settings, and each costs a search
        number = line_of(name, text)
        wrong = _misplaced(name, source, value)
        if wrong is None:
            variable = BY_NAME[name]
            try:
                lines[variable.name] = Line(text_of(variable, value), number)
                continue
            except (ValueError, RecursionError) as error:
                lines[variable.name] = Line("", number)
                wrong = _bad_value(variable, value, str(error))
                lasts = lasts and variable is not TRUST_GROUPS
        problems.append(Problem(path, number, *wrong))
    return Parsed(source, path, lines, tuple(problems), lasts)


def _unreadable(source: Source, path: str, fact: str) -> Parsed:
    problem = Problem(
        path, None, fact, "none of it holds: correct it (`gpucache config --init` shows one)"
    )
    return Parsed(source, path, {}, (problem,))


def _misplaced(name: str, source: Source, value: object) -> tuple[str, str] | None:
    """What is wrong with a name in a file of this source, and the way out; None where nothing is."""
    shown = shortened(name)
    variable = BY_NAME.get(name)
    if variable is None and isinstance(value, dict):
        return f"{shown} is a table, and settings are in none", "write each as NAME = VALUE"
    if variable is None:
        return f"{shown} is no setting", _meant(name)
    if source == "root" and not variable.in_root:
        fact = f"{shown} is nothing that a root may decide"
        return fact, f"write it into your own file (`gpucache config --init`), or set {variable}"
    return None


def _meant(name: str) -> str:
    """Which setting a name that is none may mean."""
    known = name.lower().removeprefix(PREFIX.lower())
    for variable in VARIABLES:
        if (
            variable.name_in_file == known
            and variable.name.startswith(PREFIX)
            and not variable.in_file
        ):
            return f"only the environment has it, as {variable}"
    near = nearest(known, BY_NAME)
    if near is not None:
        return f"{near} may be meant"
    return "`gpucache config` lists all that there are"


def _bad_value(variable: Variable[Any], value: object, expected: str) -> tuple[str, str]:
    shown = shortened(variable.shown(_written(value)))
    default = variable.default_text or "unset"
    return f"{variable.name_in_file} = {shown} is not {expected}", f"it is {default}"


def _written(value: object) -> str:
    """A value as a person may be shown it, as the environment would have it."""
    if isinstance(value, dict):
        return "a table"
    try:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)
    except (ValueError, RecursionError):  # more digits than Python writes; lists in lists in lists
        return "such a value"


# ---- values


def text_of(variable: Variable[Any], value: object) -> str:
    """The value as the text of the environment that means the same.

    Raises:
        ValueError: the value is of another type than the variable, or makes no sense; its message is what is expected.
    """
    text = _plain(variable, value)
    if "\0" in text or not text:
        variable.parse("")
        raise ValueError("a text")
    if variable.in_file in ("path", "keys") and _is_relative(variable, text):
        raise ValueError("an absolute path, or one below ~/")
    variable.parse(text)
    return text


def _plain(variable: Variable[Any], value: object) -> str:
    if isinstance(value, bool):
        if variable.in_file == "switch":
            return "1" if value else "0"
    elif isinstance(value, str):
        return value
    elif isinstance(value, int):
        return str(value)
    elif isinstance(value, float):
        if variable.in_file == "number":
            return f"{value:.17g}"
    elif isinstance(value, list) and variable.in_file in ("list", "keys"):
        return ",".join(map(_element, value))
    raise ValueError(_expected(variable))


def _element(value: object) -> str:
    """One of a list, in which the environment's text has commas between two."""
    is_plain = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_plain or "," in str(value):
        raise ValueError("a list of texts or numbers")
    return str(value)


def _expected(variable: Variable[Any]) -> str:
    """What a value must be that is not even of the right type."""
    try:
        variable.parse("\N{REPLACEMENT CHARACTER}")
    except ValueError as error:
        return str(error)
    return "a text"


def _is_relative(variable: Variable[Any], text: str) -> bool:
    if variable.in_file == "keys" and not is_key_file(text):
        return False
    return not text.startswith(("/", "~/"))


# ---- lines


def line_of(name: str, text: str) -> int | None:
    """The number of the line on which a name of the outermost table is set, in a text that is TOML.

    `tomllib` tells no lines. A line looks as if it set the name, and is not within a value of several lines: then what
    is before it is TOML by itself. None where several look so that do not.
    """
    start = re.compile(rf"""\s*\[*\s*["']?{re.escape(name)}["']?\s*[=.\]]""")
    before: list[str] = []
    looks = 0
    for number, line in enumerate(text.split("\n"), 1):
        if start.match(line) and looks < _MOST_LOOKS:
            looks += 1
            if _is_whole("\n".join(before)):
                return number
        before.append(line)
    return None


def _is_whole(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
