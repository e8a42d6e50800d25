"""What `gpucache run --warm` does before it becomes the program: has what is missing compiled ahead of the program.

One pool of a node serves all programs that ask for the same recipes, targets and root. It is started detached
(`disk.spawning`) by the first program where something is missing (`missing`), and ends with the last (`programs`,
`detached_pool`). Nothing here waits for the pool, and nothing is imported that does not start a program fast.
"""

from __future__ import annotations

import json
import os

from gpucache import environment
from gpucache.disk.processes import process_of, this_process
from gpucache.disk.spawning import python_command, start_detached
from gpucache.disk.vetting import Trust
from gpucache.layout.paths import ours
from gpucache.values import Value
from gpucache.warm.ahead import recordings
from gpucache.warm.ahead.command import command_id
from gpucache.warm.ahead.installed_triton import installed_triton
from gpucache.warm.ahead.missing import look_for_missing
from gpucache.warm.ahead.programs import Programs, opened, programs_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from gpucache.warm.ahead.missing import Missing

    Did = Literal["started", "joined", "nothing missing", "nothing recorded", "no triton"]

AUTO = "auto"
"""In the place of a file of recipes: those that the last run of the same command has left."""


class Ahead(Value):
    """What was done ahead of a program."""

    did: Did
    paths: tuple[str, ...] = ()
    """The files of recipes."""
    missing: Missing | None = None
    pool: int | None = None
    """The number of the process that compiles."""
    jobs: int = 0
    """So many kernels it compiles at once; 0 where another program has started it."""


def recorded_before(
    command: Sequence[str], root: str, environ: Mapping[str, str], records: bool
) -> tuple[Recipes | None, str | None]:
    """What runs of a command have left, and the file into which this one is to record, None where another one does.

    ``records`` is whether this one is to record at all.

    Raises:
        OSError, GpuCacheError: the directory of the recordings cannot be used.
    """
    trust = Trust.parse(environ).in_root(root)
    known = command_id(command, environ)
    with opened(programs_path(root, [AUTO, known])) as file:
        try:
            paths = recordings.last(recordings.recordings(root, known, trust))
            record = recordings.begin(root, known, trust) if records else None
        finally:
            file.remove()
    if not paths:
        return None, record
    return Recipes(tuple(paths), (AUTO, known)), record


class Recipes(Value):
    """Files of recipes, and by what name their pool and their side file are known."""

    paths: tuple[str, ...]
    what: tuple[str, ...]

    @classmethod
    def of_file(cls, path: str) -> Recipes:
        """Those of a file that was named."""
        real = os.path.realpath(path)  # what is named may be a link
        return cls((real,), (real,))


def is_recording(environ: Mapping[str, str], root: str) -> bool:
    """Whether an outer `gpucache run --warm auto` has this process record already."""
    record = environment.RECORD.text(environ) or ""
    return os.path.dirname(record) == ours(root, "recipes")


def compile_ahead(
    recipes: Recipes,
    root: str,
    environ: Mapping[str, str],
    *,
    targets: Sequence[str],
    jobs: int,
    search: Sequence[str] = (),
) -> Ahead:
    """Register this process, which is about to become a program, with the pool for these recipes; start one if needed.

    Args:
        recipes: what is to be compiled.
        root: the root, vetted and absolute.
        environ: the environment of the program, which the pool gets too.
        targets: architectures (``sm_90``); none for those that were recorded.
        jobs: how many kernels a pool that is started compiles at once.
        search: directories where modules are looked for beside ``sys.path``.

    Raises:
        RecipesError: a file of recipes cannot be read.
        OSError, GpuCacheError: nothing could be started.
    """
    paths = recipes.paths
    trust = Trust.parse(environ).in_root(root)
    missing = look_for_missing(paths, recipes.what, root, targets, trust)
    if missing.why == "nothing is missing":
        return Ahead("nothing missing", paths, missing)
    if installed_triton() is None:
        return Ahead("no triton", paths, missing)
    state = programs_path(root, [*recipes.what, "", *sorted(targets)])
    asked = {
        "paths": paths,
        "what": recipes.what,
        "root": root,
        "targets": list(targets),
        "jobs": jobs,
        "state": state,
        "search": list(search),
    }
    this = this_process()
    if this is None:
        raise OSError("there is no /proc to watch this process by")
    with opened(state) as file:
        found = file.read().running()
        programs = (*found.programs, this)
        if found.pool is not None:
            file.write(Programs(found.pool, programs))
            return Ahead("joined", paths, missing, found.pool[0])
        command = python_command("gpucache.warm.ahead.detached_pool", json.dumps(asked))
        # Registered first: the pool reads once this has let go, and one that nobody is found to need ends.
        file.write(Programs(None, programs))
        pid = start_detached(command, _for_the_pool(environ))
        file.write(Programs(process_of(pid), programs))
    return Ahead("started", paths, missing, pid, jobs)


def _for_the_pool(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program, less what would make the pool record what it compiles."""
    kept = dict(environ)
    kept.pop(environment.RECORD.name, None)
    return kept


def default_jobs(cores: int, ranks: int) -> int:
    """How many kernels are compiled at once: on each core that no rank of the program computes on, at least one."""
    return max(1, cores - ranks)
