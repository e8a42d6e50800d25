"""The parser that reads the usual command lines of `path`, `env` and `run` without importing click, to start fast.

Whatever this parser does not know (another option, a value that begins with ``-``, wrong usage, help, completion) is
click's to read, and so all error messages are click's. `tests/test_quick.py` shows that both read a command line alike.
"""

from __future__ import annotations

import os

from gpucache.cli.path_and_env import EnvCall, PathCall
from gpucache.cli.run import RunCall
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

COMPLETION = "_GPUCACHE_COMPLETE"
"""Set by the shell function that completes words; click answers it."""
UUIDS = ("GPU-", "MIG-", "FAKE-")
"""How a UUID begins: NVML's two kinds, and that of a device that is made up."""
_FORMS = ("sh", "fish", "dotenv")


class _UnknownError(Exception):
    """This parser does not know the command line, and click must read it."""


class _Options(Value):
    """The options of one command that this parser knows, and the field of the call that each sets."""

    valued: dict[str, str]
    """Options with a value, and the field that is set to it."""
    switches: dict[str, tuple[str, bool]]
    """Options without a value, the field that is set, and what to."""


_PATH = _Options({"--root": "root"}, {})
_ENV = _Options({"--root": "root", "--format": "form", "--caches": "caches"}, {})
_RUN = _Options(
    {
        "--root": "root",
        "--device": "device",
        "--record": "record",
        "--warm": "warm",
        "--jobs": "jobs",
        "--caches": "caches",
    },
    {
        "--strict": ("strict", True),
        "--no-strict": ("strict", False),
        "--force": ("force", True),
        "--fresh": ("fresh", True),
        "--plugin": ("plugin", True),
        "--no-plugin": ("plugin", False),
    },
)


def read(words: Sequence[str], environ: Mapping[str, str]) -> PathCall | EnvCall | RunCall | None:
    """The call that a command line means; None where click must read it."""
    if not words or os.name != "posix" or COMPLETION in environ:
        return None
    command, *rest = words
    try:
        if command == "path":
            return PathCall(**_with_device(rest, _PATH))
        if command == "env":
            return EnvCall(**_with_device(rest, _ENV))
        if command == "run":
            return _run(rest)
    except _UnknownError:
        return None
    return None


def _with_device(words: list[str], options: _Options) -> dict[str, Any]:
    """The fields of a call whose one argument, a device, may stand between the options."""
    fields, others = _parsed(words, options, stop=False)
    if len(others) != 1:
        raise _UnknownError
    if "form" in fields and fields["form"] not in _FORMS:
        raise _UnknownError
    if "caches" in fields:
        fields["caches"] = _caches(fields["caches"])
    fields["device"] = device_of(others[0])
    return fields


def _run(words: list[str]) -> RunCall:
    """The call of `run`, whose command may have options of its own."""
    fields, command = _parsed(words, _RUN, stop=True)
    if not command or not command[0]:
        raise _UnknownError
    if "device" in fields:
        fields["device"] = device_of(fields["device"])
    if "jobs" in fields:
        fields["jobs"] = _number(fields["jobs"])
        if not fields["jobs"] or "warm" not in fields:
            raise _UnknownError
    if "caches" in fields:
        fields["caches"] = _caches(fields["caches"])
    return RunCall(command=tuple(command), **fields)


def _parsed(words: list[str], options: _Options, stop: bool) -> tuple[dict[str, Any], list[str]]:
    """The fields that options set, and the other words.

    With ``stop`` the options end at the first other word, or at ``--``, and all words from there on are others.
    """
    fields: dict[str, Any] = {}
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if stop and word == "--":
            break
        if word.startswith("-") and word != "-":
            field, value = _option(word, left, options)
            fields[field] = value
        else:
            others.append(word)
            if stop:
                break
    return fields, others + left


def _option(word: str, left: list[str], options: _Options) -> tuple[str, Any]:
    """The field that an option sets, and the value; where that is the next word, it is taken from ``left``."""
    if word in options.switches:
        return options.switches[word]
    name, equals, value = word.partition("=")
    if name not in options.valued:
        raise _UnknownError
    if not equals:
        if not left or left[0].startswith("-"):
            raise _UnknownError
        value = left.pop(0)
    if not value.strip() or value.startswith("-"):
        raise _UnknownError
    return options.valued[name], value


def _caches(text: str) -> tuple[str, ...]:
    from gpucache.errors import ConfigurationError
    from gpucache.layout.jit_caches import named

    try:
        return named(text, "--caches")
    except ConfigurationError:
        raise _UnknownError from None


def device_of(text: str) -> int | str:
    """The device that a word names: a CUDA ordinal, or a UUID or its beginning."""
    return text if text.startswith(UUIDS) else _number(text)


def _number(text: str) -> int:
    is_number = text.isascii() and text.isdigit()
    if not is_number or len(text) > 9:
        raise _UnknownError
    return int(text)
