"""What a kernel launch may log without harm, and where it goes: to stderr as `GPUCACHE_LOG` says, else as before."""

from __future__ import annotations

import logging
import os

LEVELS = ("debug", "info", "warning", "error")
_log = logging.getLogger("gpucache")


def level_of(text: str) -> int | None:
    """The level of `logging` that a value of `GPUCACHE_LOG` means, in any case of letters; None for nonsense."""
    return getattr(logging, text.upper()) if text.lower() in LEVELS else None


def tell(level: int, message: str, *words: object) -> None:
    """One line of the log. A handler or filter of the program that raises costs the line, not the kernel launch."""
    try:
        _log.log(level, message, *words)
    except Exception:
        return  # to log that would raise again


def configure(level: int | None) -> None:
    """Send the log from this level on to stderr, once a process; without a level nothing is touched.

    Python's last-resort handler then prints warnings where the program has set up no logging. What the program has set
    up goes on, so that one that logs to stderr itself has every line twice.
    """
    if level is None or any(isinstance(handler, _ToStderr) for handler in _log.handlers):
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
    """Ours, told from one that the program has attached."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A stderr that is closed or full is no reason to print a traceback there, nor to raise."""


_warned: set[str] = set()


def warn_once(
    what: str, cause: object, outcome: str = "compiling without the shared cache"
) -> None:
    """One log line per cause and process. Never `warnings.warn`, which ``-W error`` turns into an exception."""
    # The paths in an OSError, and what we were about to do, differ from kernel to kernel; the cause does not.
    kind = (
        os.strerror(cause.errno)
        if isinstance(cause, OSError) and cause.errno
        else f"{what}: {cause}"
    )
    if kind not in _warned:
        _warned.add(kind)
        tell(logging.WARNING, "%s: %s; %s", what, cause, outcome)
