"""How a command tells that it failed: a line and a hint on stderr, and with ``--json`` one object on stdout.

Exit codes are `main`'s. Imported before anything fails: a process that may open no more files imports nothing.
"""

from __future__ import annotations

from contextlib import suppress

from gpucache.cli.terminal import OutputError, is_terminal, print_json, refused, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucache.errors import ErrorKind, GpuCacheError

_NO_MEMORY = "free some, or raise the limit of this process (`ulimit -v`) or container"
_TRY_AGAIN = (
    "the operating system said so in the middle of the command; try again once the cause is gone"
)


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, be the rest of the line as wrong as it may.

    What stands behind ``--``, or behind `run`, is another program's.
    """
    ours = list(words)
    if "--" in ours:
        ours = ours[: ours.index("--")]
    at = command_at(ours)
    if at is not None and ours[at] == "run":
        ours = ours[:at]
    if "--json" in ours:
        return True
    return "env" in ours and ("--format=json" in ours or "--format json" in " ".join(ours))


def command_at(words: Sequence[str]) -> int | None:
    """Where the command stands among its words: behind options of `gpucache` itself, of which --root has a value."""
    for number, word in enumerate(words):
        is_value = number > 0 and words[number - 1] == "--root"
        if not word.startswith("-") and not is_value:
            return number
    return None


def tell_failure(kind: ErrorKind, problem: str, hint: str, *, as_json: bool) -> None:
    """Say on stderr what is wrong and the way out, if there is one; with ``as_json`` also as an object on stdout.

    A person who reads both streams on one terminal gets the object only.
    """
    is_told = False
    if as_json:
        with suppress(OutputError):
            print_json({"error": failure_row(kind, problem, hint)})
            is_told = is_terminal()
    if is_told:
        return
    say(f"error: {problem}")
    if hint:
        say(f"hint: {hint}")


def failure_row(kind: ErrorKind, problem: str, hint: str) -> dict[str, str]:
    """The fields of a failure by name, for JSON; ``hint`` is empty where there is no way out to tell."""
    return {"kind": kind, "problem": problem, "hint": hint}


def complain(error: GpuCacheError, *, as_json: bool = False) -> None:
    """Tell what an error found wrong, and the way out if there is one."""
    tell_failure(error.error_kind, error.problem, error.hint, as_json=as_json)


def complain_of_refusal(error: OSError | MemoryError, *, as_json: bool = False) -> None:
    """Tell what the operating system refused (a disk that does not answer, a limit on processes), and of which path."""
    problem = "there is no memory left"
    hint = _NO_MEMORY
    if isinstance(error, OSError):
        problem = refused(error)
        hint = _TRY_AGAIN
    tell_failure("system", problem, hint, as_json=as_json)


def complain_of_defect(*, as_json: bool = False) -> None:
    """Show the exception that is being handled, which no part of gpucache expected: where it came from on stderr."""
    import traceback

    for line in traceback.format_exc().splitlines():
        say(line)
    tell_failure(
        "defect",
        "this is a defect of gpucache; the lines above tell its developers where",
        "",
        as_json=as_json,
    )
