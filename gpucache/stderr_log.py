"""Sends gpucache's log to stderr where `GPUCACHE_LOG` asks for it: the program itself may have set up no logging."""

from __future__ import annotations

import logging

_log = logging.getLogger("gpucache")


def configure(level: int | None) -> None:
    """Send the log from this level on to stderr, once a process; without a level, change nothing.

    Without a level, Python's last-resort handler prints warnings where the program has set up no logging. What the
    program has set up goes on, so that a program that logs to stderr itself has every line twice.
    """
    if level is None:
        return
    is_done = any(isinstance(handler, _ToStderr) for handler in _log.handlers)
    if is_done:
        return
    handler = _ToStderr()
    handler.setFormatter(
        logging.Formatter("%(asctime)s gpucache[%(process)d] %(levelname)s %(message)s")
    )
    handler.setLevel(level)
    _log.addHandler(handler)
    if level < _log.getEffectiveLevel():
        _log.setLevel(level)


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler that `configure` attaches: a class of its own, to tell it from those of the program."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore that stderr is closed or full, where `logging` would print a traceback there, or raise."""
