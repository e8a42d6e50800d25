"""`Plan`: what the pool is to do, as the caller's process writes it down for the scheduler and all processes below it.

The plan lies in a file in memory, which all processes of the pool have open: the recipes, each a line, and behind them
one object of JSON. Messages name jobs by their numbers only, and each process reads the recipes that it needs.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from gpucache.kernels.recipe import Recipe, Target, Unencodable, from_text, to_text
from gpucache.values import Value, as_dict
from gpucache.warm.pool.forking import above_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import BinaryIO, TypeAlias

    Place: TypeAlias = tuple[int, int]
    """Where something is in the file of a plan: its offset, and its length in bytes."""

KEPT_SOURCES = "<kept sources>"
"""What stands for the package of recipes whose module is kept with them."""


class Wanted(NamedTuple):
    """One recipe for one target."""

    recipe: Recipe
    target: Target


class Job(NamedTuple):
    """One recipe for one target, as the processes of the pool know it."""

    number: int
    """Its place in the order in which the recipes were given."""
    package: str
    """The top-level package of the kernel's module: one process imports all modules of a package."""
    module: str
    """The module, or what stands for that of a kept source."""
    target: Target
    offset: int
    length: int
    """Where the recipe is in the file of the plan."""


class Settings(Value, kw_only=True):
    """What holds for every job."""

    root: str
    processes: int
    """So many kernels are compiled at once, at most."""
    time_limit_s: float
    """For one kernel, and for the import of one module."""
    exact: bool
    dry_run: bool
    main: str | None
    """The script whose kernels are those of ``__main__``."""
    sources: bool
    """Whether the sources that are kept with recipes are executed: nobody else can have written them."""


class Plan(NamedTuple):
    """The jobs in the order in which they are to be done, and what holds for all of them."""

    settings: Settings
    jobs: Sequence[Job]
    file: int
    """The descriptor of the file of the plan, the same in all processes of the pool."""

    def recipe(self, job: Job) -> Recipe:
        """Read the recipe of a job."""
        return from_text(os.pread(self.file, job.length, job.offset))


def package_of(recipe: Recipe) -> tuple[str, str]:
    """The package and the module by which a recipe is put with others."""
    if recipe.source is not None:
        return KEPT_SOURCES, f"{recipe.function.module} of {recipe.key}"
    module = recipe.function.module
    return module.partition(".")[0], module


def wanted_in_order(
    recipes: Iterable[Recipe], targets: Sequence[Target], seconds: Mapping[str, float]
) -> list[Wanted]:
    """Each recipe for each target, or for its own where none is given; of recipes with one key only the first.

    ``seconds`` says of some keys how long they took: those come last and among themselves the longest first, so that
    in the end no long one is left alone. Of the others nothing is known, so that each may be the longest.
    """

    def longest_first(recipe: Recipe) -> float:
        return -seconds.get(recipe.key, float("inf"))

    once: dict[str, Recipe] = {}
    for recipe in recipes:
        once.setdefault(recipe.key, recipe)
    wanted = []
    for recipe in sorted(once.values(), key=longest_first):
        for target in dict.fromkeys(targets or (recipe.target,)):
            wanted.append(Wanted(recipe, target))
    return wanted


# ---- writing and reading


def write_plan(
    settings: Settings, wanted: Sequence[Wanted]
) -> tuple[BinaryIO, Place, dict[int, str]]:
    """Write the plan into a new file; return the file, where its object is, and why some jobs are not in it, by number.

    Raises:
        OSError: no file can be made.
    """
    file = _file_in_memory()
    places: dict[str, Place] = {}
    jobs = []
    refused: dict[int, str] = {}
    for number, (recipe, target) in enumerate(wanted):
        if recipe.key not in places:
            try:
                places[recipe.key] = _append(file, to_text(recipe) + b"\n")
            except Unencodable as error:
                refused[number] = error.reason
                continue
        jobs.append((number, *package_of(recipe), target, *places[recipe.key]))
    said = {"settings": as_dict(settings), "jobs": jobs}
    place = _append(file, json.dumps(said).encode())
    file.flush()
    return file, place, refused


def read_plan(file: int, place: Place) -> Plan:
    """The plan in a file, which `write_plan` has written."""
    offset, length = place
    said = json.loads(os.pread(file, length, offset))
    jobs = []
    for number, package, module, target, begin, size in said["jobs"]:
        jobs.append(Job(number, package, module, Target(*target), begin, size))
    return Plan(Settings(**said["settings"]), jobs, file)


def _append(file: BinaryIO, data: bytes) -> Place:
    offset = file.tell()
    file.write(data)
    return offset, len(data)


def _file_in_memory() -> BinaryIO:
    try:
        return open(above_stdio(os.memfd_create("gpucache-plan")), "wb")
    except (AttributeError, OSError):  # a sandbox may forbid it
        import tempfile

        with tempfile.TemporaryFile() as file:
            return open(above_stdio(os.dup(file.fileno())), "w+b")
