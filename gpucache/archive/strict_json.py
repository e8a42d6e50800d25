"""One line of JSON that anybody may have written, and its values as a statement may have them.

`json` alone takes numbers of a million digits, ``NaN``, one name twice and halves of letters; here each is a flaw.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from gpucache.archive.errors import BadPack, quoted

MOST_TEXT = 1000
"""Letters of a text, such as the name of a kernel."""


class _Refused(ValueError):
    """A value of JSON that is never one of a statement's."""


def _number(text: str) -> int:
    if len(text) > 20:  # int() of a million digits takes seconds
        raise _Refused("a number of more than 20 digits")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > 40:
        raise _Refused("a number of more than 40 digits")
    return float(text)


def _constant(text: str) -> float:
    raise _Refused(f"{text}, which is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise _Refused("one name twice")
    return named


_decode = json.JSONDecoder(
    parse_float=_fraction, parse_int=_number, parse_constant=_constant, object_pairs_hook=_once
).decode


def object_in(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        BadPack: it is no JSON, or no object, has a name twice, or is nested too deeply.
    """
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise BadPack("encoding", "it has letters that are not ASCII, and not escaped") from None
    try:
        said = _decode(text)
    except _Refused as error:
        raise BadPack("json", f"it has {error}") from None
    except ValueError:
        raise BadPack("json", "it is no JSON") from None
    except RecursionError:
        raise BadPack("json", "it is nested too deeply") from None
    if type(said) is not dict:
        raise BadPack("json", "it is no object of JSON")
    return said


def shown(said: dict[str, Any], name: str) -> str:
    """A text that can be shown: no controls, no halves of letters, 1,000 letters at most."""
    text = said.get(name)
    if type(text) is not str:
        raise BadPack("value", f"its {name} is no text")
    check_shown(text, name)
    return text


def shown_or_none(said: dict[str, Any], name: str) -> str | None:
    """As `shown`, of a field that may be absent or null."""
    return None if said.get(name) is None else shown(said, name)


def check_shown(text: str, what: str) -> None:
    """Refuse a text that is too long, or cannot be shown; ``what`` it is, in words."""
    if len(text) > MOST_TEXT:
        raise BadPack("text", f"its {what} has more than {MOST_TEXT} letters")
    if not text.isprintable():
        raise BadPack("text", f"its {what} {quoted(text)} cannot be shown")


def list_in(said: dict[str, Any], name: str) -> list[Any]:
    """The list of a field."""
    found = said.get(name)
    if type(found) is not list:
        raise BadPack("value", f"its {name} are no list")
    return found


def whole(value: object, most: int, code: Literal["value", "size"], what: str) -> int:
    """A whole number from 0 to ``most``; ``what`` it is, in words. ``code`` is told if it is none."""
    # a truth value is an int to Python, and a float may be a whole number
    if type(value) is not int or not 0 <= value <= most:
        raise BadPack(code, f"{what} is no whole number from 0 to {most}")
    return value


def seconds_or_none(value: object) -> float | None:
    """A number of seconds, or null."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise BadPack("value", "its compile_s is no number of seconds")
    return value  # type: ignore[return-value]
