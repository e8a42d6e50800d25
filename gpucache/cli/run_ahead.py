"""What `gpucache run` does for ``--record`` and ``--warm``, and what it says of that. Imports no click.

None of it may keep the command from running, but a file of recipes that was named and cannot be read.
"""

from __future__ import annotations

import os

from gpucache import environment
from gpucache.cli.failures import complain_of_defect
from gpucache.cli.terminal import refused
from gpucache.errors import GpuCacheError, RecipesError
from gpucache.layout.paths import root_of_fresh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from gpucache.cli.run import RunCall
    from gpucache.directories.launch import LaunchReport
    from gpucache.warm.ahead.ahead import Ahead, Recipes
    from gpucache.warm.ahead.missing import Missing

    class Say(Protocol):
        """Says a line once in a job; ``sentence`` is what the lines of its ranks have in common."""

        def __call__(self, text: str, sentence: str = "") -> None:
            """Say it, unless another rank has."""


def with_recipes(
    call: RunCall, environ: dict[str, str], report: LaunchReport, say: Say
) -> dict[str, str]:
    """Do what the call asks for, and return the environment of its command. ``say`` says a line once in a job.

    Where something fails, a line says so, and the command runs without; no other exception comes out than the one told.

    Raises:
        RecipesError: the file of recipes that the call names cannot be read.
    """
    if environment.DISABLE.read(environ):
        return environ
    environ = dict(environ)
    if call.record is not None:
        environ[environment.RECORD.name] = os.path.abspath(call.record)
        if not call.plugin:
            say("note: --record: without the plug-in nothing is recorded")
    if call.warm is None:
        return environ
    try:
        _warm(call, call.warm, environ, report, say)
    except RecipesError:
        raise
    except GpuCacheError as error:
        say(f"warning: --warm: nothing is compiled ahead: {error}")
    except OSError as error:
        say(f"warning: --warm: nothing is compiled ahead: {refused(error)}")
    except Exception:
        complain_of_defect()  # which is no reason for the command not to run in its directories
    return environ


def _warm(
    call: RunCall, warm: str, environ: dict[str, str], report: LaunchReport, say: Say
) -> None:
    """Have what is missing compiled, and with `AUTO` put into ``environ`` where the command is to record."""
    from gpucache.warm.ahead.ahead import AUTO, Recipes, compile_ahead

    root = environ[environment.ROOT.name]
    recipes: Recipes | None = Recipes.of_file(warm)
    if warm == AUTO:
        recipes = _recorded(call, root, environ, say)
    if recipes is None:
        return
    ahead = compile_ahead(
        recipes,
        root,
        environ,
        targets=report.architectures,
        jobs=call.jobs or _default_jobs(environ, report),
        search=_directories_of_scripts(call.command),
    )
    say(f"note: --warm: {_told(ahead)}", "note: --warm")


def _recorded(call: RunCall, root: str, environ: dict[str, str], say: Say) -> Recipes | None:
    """What the last run of the command has left. Puts into ``environ`` where this one is to record, if it is."""
    from gpucache.warm.ahead.ahead import is_recording, recorded_before

    if is_recording(environ, root):
        return None  # an outer `run` has asked already, and its pool serves this node
    own = environment.RECORD.text(environ)
    # A fresh root is empty each time: what was recorded is kept in that of other runs.
    root = root_of_fresh(root) or root
    records = own is None and call.plugin
    recipes, record = recorded_before(call.command, root, environ, records)
    if own is not None:
        say(f"note: --warm auto: what this run asks for is recorded in {own} alone")
    if record is not None:
        environ[environment.RECORD.name] = record
    if recipes is None and records:
        who = "another one" if record is None else "this one"
        before = "no run of this command has left recipes yet"
        say(f"note: --warm auto: {before}; {who} records them", f"note: --warm auto: {before}")
    return recipes


def _default_jobs(environ: dict[str, str], report: LaunchReport) -> int:
    from gpucache.directories.local_rank import tasks_here
    from gpucache.machine.cores import usable_cores
    from gpucache.warm.ahead.ahead import default_jobs

    ranks = tasks_here(environ) or report.device_count
    return default_jobs(usable_cores(), ranks)


def _directories_of_scripts(command: Sequence[str]) -> list[str]:
    """Where Pythons that run this command look for modules first: the directory of a script, the current one of ``-m``.

    Nothing for any other command: the current directory may be one where anybody may write.
    """
    found = []
    for word in command[1:]:
        if word.endswith(".py") and not word.startswith("-") and os.path.isfile(word):
            found.append(os.path.dirname(os.path.abspath(word)))
            break
    if any(map(_looks_here, command, command[1:])):
        found.append(os.getcwd())
    return found


def _looks_here(before: str, word: str) -> bool:
    """Whether a word has a Python look into the current directory: ``-m`` of any launcher, ``python -c``."""
    is_python = os.path.basename(before).startswith("python")
    return word in ("-m", "--module") or (word == "-c" and is_python)


_WHY = {
    "missing": "",
    "another Triton": "another Triton is installed than the recorded one: ",
    "another target": "the devices here are of another architecture: ",
    "source changed": "a source file has changed: ",
}


def _told(ahead: Ahead) -> str:
    """What was done ahead of the program, in one line."""
    files = " and ".join(ahead.paths)
    missing = ahead.missing
    if missing is None or ahead.did == "nothing missing":
        total = 0 if missing is None else missing.total
        if not total:
            return f"nothing to compile: there is no recipe in {files}"
        return f"nothing to compile: all {total} recipes of {files} are there"
    if ahead.did == "no triton":
        import sys

        return f"nothing is compiled ahead: {sys.executable} has no Triton; install gpucache where the program's is"
    what = _of(missing)
    if ahead.did == "joined":
        return f"process {ahead.pool} is compiling {what} of {files}"
    kernels = "kernel" if ahead.jobs == 1 else "kernels"
    return f"process {ahead.pool} compiles {what} of {files}, {ahead.jobs} {kernels} at once"


def _of(missing: Missing) -> str:
    why = _WHY.get(missing.why, "")
    if why:
        return f"what is missing ({why.rstrip(': ')}; {missing.total} recipes)"
    return f"what is missing ({missing.missing} of {missing.total} recipes)"
