"""The parser that reads the usual command lines of `path`, `env` and `run` without importing click, to start fast.

Whatever this parser does not know (another option, a value that begins with ``-``, wrong usage, help, completion) is
click's to read, and so all error messages are click's. `tests/test_quick.py` shows that both read a command line alike.
"""

from __future__ import annotations

import os

from gpucache.cli.path_and_env import EnvCall, PathCall
from gpucache.cli.run import RunCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_COMPLETION = (
    "_GPUCACHE_COMPLETE"  # set by the shell function that completes words, and read by click
)
_PATH = {"--root": "root"}
_ENV = {"--root": "root", "--format": "form"}
_RUN = {"--root": "root", "--device": "device"}
_FORMS = ("sh", "fish", "dotenv")
_SWITCHES = {
    "--strict": ("strict", True),
    "--force": ("force", True),
    "--plugin": ("plugin", True),
    "--no-plugin": ("plugin", False),
}


class _UnknownError(Exception):
    """Click must read this command line."""


def read(words: Sequence[str], environ: Mapping[str, str]) -> PathCall | EnvCall | RunCall | None:
    """The call that a command line means; None where click must read it."""
    if not words or os.name != "posix" or _COMPLETION in environ:
        return None
    command, *rest = words
    try:
        if command == "path":
            return PathCall(**_with_ordinal(rest, _PATH))
        if command == "env":
            return EnvCall(**_with_ordinal(rest, _ENV))
        if command == "run":
            return _run(rest)
    except _UnknownError:
        return None
    return None


def _with_ordinal(words: list[str], valued: dict[str, str]) -> dict[str, Any]:
    """The fields of a call whose one argument, an ordinal, may stand between the options."""
    fields, others = _parsed(words, valued, {}, stop=False)
    if len(others) != 1:
        raise _UnknownError
    if "form" in fields and fields["form"] not in _FORMS:
        raise _UnknownError
    return {**fields, "ordinal": _ordinal(others[0])}


def _run(words: list[str]) -> RunCall:
    """The call of `run`, whose command may have options of its own."""
    fields, command = _parsed(words, _RUN, _SWITCHES, stop=True)
    if not command or not command[0]:
        raise _UnknownError
    if "device" in fields:
        fields["device"] = _ordinal(fields["device"])
    return RunCall(command=tuple(command), **fields)


def _parsed(
    words: list[str], valued: dict[str, str], switches: dict[str, tuple[str, bool]], stop: bool
) -> tuple[dict[str, Any], list[str]]:
    """The fields that options set, and the other words; with ``stop`` all that follows the first of them, or ``--``."""
    fields: dict[str, Any] = {}
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word in switches:
            field, on = switches[word]
            fields[field] = on
        elif name in valued and equals:
            fields[valued[name]] = value
        elif word in valued and left and not left[0].startswith("-"):
            fields[valued[word]] = left.pop(0)
        elif word == "--" and stop:
            break
        elif word.startswith("-") and word != "-":
            raise _UnknownError
        else:
            others.append(word)
            if stop:
                break
    return fields, others + left


def _ordinal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise _UnknownError
    return int(text)
