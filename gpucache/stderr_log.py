"""Sends gpucache's log to stderr where `GPUCACHE_LOG` asks for it: the program itself may have set up no logging.

Each line is one text, or with `GPUCACHE_LOG_FORMAT=json` one JSON object (docs/json.md).
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from gpucache.log import FIELDS

_log = logging.getLogger("gpucache")


def configure(level: int | None, as_json: bool = False, rank: int | None = None) -> None:
    """Send the log from this level on to stderr, once a process; ``rank`` is this process's on the node, for JSON.

    Without a level, warnings go there where the program has set up no logging: by Python's last-resort handler, or as
    JSON where that is asked for. What the program has set up goes on, so that a program that logs to stderr itself has
    every line twice.
    """
    if level is None and not as_json:
        return
    is_done = any(isinstance(handler, _ToStderr) for handler in _log.handlers)
    if is_done:
        return
    handler = _ToStderr() if level is not None else _ToStderrAsLastResort()
    handler.setFormatter(_formatter(as_json, rank))
    handler.setLevel(logging.WARNING if level is None else level)
    _log.addHandler(handler)
    if level is not None and level < _log.getEffectiveLevel():
        _log.setLevel(level)


def _formatter(as_json: bool, rank: int | None) -> logging.Formatter:
    if as_json:
        return _AsJson(rank)
    return logging.Formatter("%(asctime)s gpucache[%(process)d] %(levelname)s %(message)s")


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler that `configure` attaches: a class of its own, to tell it from those of the program."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore that stderr is closed or full, where `logging` would print a traceback there, or raise."""


class _ToStderrAsLastResort(_ToStderr):
    """Writes only where the program has set up no logging, as `logging.lastResort`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, unless the program has a handler for it."""
        if not logging.getLogger().handlers:
            super().emit(record)


class _AsJson(logging.Formatter):
    """Makes of each line a JSON object on one line."""

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """The object: when, how grave, which process, what, and the fields that the line has."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "pid": record.process,
            "host": os.uname().nodename if hasattr(os, "uname") else None,
            "rank": self._rank,
            "message": record.getMessage(),
        }
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        return json.dumps(said | fields, default=str)
