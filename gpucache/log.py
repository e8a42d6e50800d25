"""The logger that all of gpucache uses, safe in a kernel launch too.

Importing `logging` takes a third of a worker's start, so it is imported with the first line that is logged.
"""

from __future__ import annotations

import os

from gpucache.escapes import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# As `logging` numbers its levels.
DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
FIELDS = "gpucache_fields"
"""The attribute of a record of `logging` that has the fields of its line."""
_before_first_line: list[Callable[[], None]] = []


def level_of(text: str) -> int | None:
    """The level of `logging` that a value of `GPUCACHE_LOG` means, in any case of letters; None for nonsense."""
    return LEVELS.get(text.lower())


def before_first_line(prepare: Callable[[], None]) -> None:
    """Have ``prepare`` called once, just before the first line is logged, to set up handlers."""
    _before_first_line.append(prepare)


def tell(level: int, message: str, *words: object, **fields: object) -> None:
    """Log one line. If a handler or filter of the program raises, the line is lost, and the kernel launch goes on.

    ``fields`` are what a program that reads the log need not look for in the words: ``key``, and ``seconds`` of a
    compile or of a question (`stderr_log`).
    """
    try:
        import logging

        while _before_first_line:
            _before_first_line.pop(0)()
        log = logging.getLogger("gpucache")
        if log.isEnabledFor(level):
            log.log(level, message, *map(_shown, words), extra={FIELDS: fields})
    except Exception:
        return  # to log that would raise again


def _shown(word: object) -> object:
    """A word of a line: a number as it is, and of a name, a path or an error a text that is safe to show anywhere."""
    return word if isinstance(word, (int, float)) else printable(str(word))


_tells_alone = False


def tell_whoever_tells() -> None:
    """Have `tell_in_job` log every line, for a command that a person has called, and may call again."""
    global _tells_alone
    _tells_alone = True


def tell_in_job(level: int, message: str, *words: object) -> None:
    """Log one line that each process of a job on this node would log.

    The first process logs it at this level, the others for debugging only.
    """
    if not _is_first(message, words):
        level = DEBUG
    tell(level, message, *words)


def _is_first(message: str, words: tuple[object, ...]) -> bool:
    """Whether this process is the one of its job that says a line to people. Never raises."""
    try:
        from gpucache.once import first_in_job

        return _tells_alone or first_in_job(message % words, os.environ)
    except Exception:
        return True  # it is better told eight times than not


_warned: set[str] = set()


ALONE = "compiling without the shared cache"
"""What follows from most failures in a launch."""


def warn_once(what: str, cause: object, outcome: str = ALONE, kind: str = "") -> None:
    """Log a warning of what failed, its cause and the outcome; once for each cause in a job on this node.

    ``kind`` is what such warnings have in common, where their causes differ in what matters little. Each other process
    logs it for debugging, and no process twice. It is never a `warnings.warn`, which ``-W error`` would turn into an
    exception.
    """
    kind = kind or f"{what}: {cause}"
    if isinstance(cause, OSError) and cause.errno:
        # Its paths, and what was about to be done, differ from kernel to kernel; the cause does not.
        kind = f"{os.strerror(cause.errno)}; {outcome}"
    if kind in _warned:
        return
    _warned.add(kind)
    level = WARNING if _is_first("%s", (kind,)) else DEBUG
    tell(level, "%s: %s; %s", what, cause, outcome)
