"""The logger that all of gpucache uses, safe in a kernel launch too.

Importing `logging` takes a third of a worker's start, so it is imported with the first line that is logged.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# As `logging` numbers its levels.
DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_before_first_line: list[Callable[[], None]] = []


def level_of(text: str) -> int | None:
    """The level of `logging` that a value of `GPUCACHE_LOG` means, in any case of letters; None for nonsense."""
    return LEVELS.get(text.lower())


def before_first_line(prepare: Callable[[], None]) -> None:
    """Have ``prepare`` called once, just before the first line is logged, to set up handlers."""
    _before_first_line.append(prepare)


def tell(level: int, message: str, *words: object) -> None:
    """Log one line. If a handler or filter of the program raises, the line is lost, and the kernel launch goes on."""
    try:
        import logging

        while _before_first_line:
            _before_first_line.pop(0)()
        logging.getLogger("gpucache").log(level, message, *words)
    except Exception:
        return  # to log that would raise again


_warned: set[str] = set()


ALONE = "compiling without the shared cache"
"""What follows from most failures in a launch."""


def warn_once(what: str, cause: object, outcome: str = ALONE) -> None:
    """Log a warning of what failed, its cause and the outcome; once for each cause in a process.

    It is never a `warnings.warn`, which ``-W error`` would turn into an exception.
    """
    kind = f"{what}: {cause}"
    if isinstance(cause, OSError) and cause.errno:
        # Its paths, and what was about to be done, differ from kernel to kernel; the cause does not.
        kind = f"{os.strerror(cause.errno)}; {outcome}"
    if kind not in _warned:
        _warned.add(kind)
        tell(WARNING, "%s: %s; %s", what, cause, outcome)
