"""From files of recipes to a pool, and from what it did to the side file that tells the next start of a program."""

from __future__ import annotations

import os
from contextlib import suppress

from gpucache import configuration
from gpucache.disk.vetting import Trust, vet, vet_file
from gpucache.errors import GpuCacheError, RecipesError
from gpucache.kernels.recipe_lines import BadLine, read_recipe_file, read_recipes
from gpucache.layout.paths import root_of_recorded
from gpucache.store.manifest import RECIPE
from gpucache.values import Value
from gpucache.warm.ahead import made_keys, recordings
from gpucache.warm.ahead.recipe_summary import summary_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from gpucache.kernels.recipe import Recipe, Target
    from gpucache.warm.outcome import Outcome
    from gpucache.warm.pool.pool import Pool

STDIN = "-"


class BadLineIn(Value):
    """A line of a file that is no recipe."""

    path: str
    number: int
    reason: str


class GivenRecipes(Value):
    """The recipes of some files, or of a store."""

    recipes: tuple[Recipe, ...]
    bad: tuple[BadLineIn, ...] = ()
    paths: tuple[str, ...] = ()
    """The real paths of the files that can be read again."""
    trusted: bool = False
    """Whether the sources that are kept with recipes may be run: nobody else could have written the files."""


def read_files(files: Sequence[str], stdin: BinaryIO | None = None) -> GivenRecipes:
    """Read files of recipes; ``-`` is ``stdin``.

    Raises:
        RecipesError: one cannot be read.
        BadRecipeFile: one is no file of recipes, or of a format that is unknown.
    """
    recipes: dict[str, Recipe] = {}
    bad: list[BadLineIn] = []
    for file in files:
        for found in _read(file, stdin):
            if isinstance(found, BadLine):
                bad.append(BadLineIn(file, found.number, found.reason))
            else:
                recipes.setdefault(found.key, found)
    paths = tuple(os.path.realpath(file) for file in files if os.path.isfile(file))
    return GivenRecipes(
        recipes=tuple(recipes.values()),
        bad=tuple(bad),
        paths=paths,
        trusted=len(paths) == len(files) and all(map(_is_trusted, paths)),
    )


def read_store(root: str) -> GivenRecipes:
    """The recipes that the entries of a vetted root's store carry, and what is wrong with those that are damaged.

    Raises:
        ConfigurationError: a variable that says whom to trust makes no sense.
    """
    # What reads a whole root is seldom wanted, and every command would import it.
    from gpucache.report.recipes import StoredRecipe, stored_recipes

    recipes = []
    bad = []
    for found in stored_recipes(root, Trust.parse(configuration.environ(root=root)).in_root(root)):
        if isinstance(found, StoredRecipe):
            recipes.append(found.recipe)
        elif found.why != "none":
            bad.append(BadLineIn(f"{found.of.path}/{RECIPE}", 1, found.fact))
    return GivenRecipes(tuple(recipes), tuple(bad), trusted=True)


def sources_before(paths: Iterable[str]) -> dict[str, made_keys.MadeKeys]:
    """What the sources of each file's recipes are, to be asked before these are compiled, for `leave_keys`."""
    before = {}
    for path in paths:
        with suppress(GpuCacheError):  # one that is too long to be looked at before each start
            before[path] = made_keys.nothing_made(summary_of([path]))
    return before


def leave_keys(
    before: Mapping[str, made_keys.MadeKeys],
    outcomes: Sequence[Outcome],
    root: str,
    targets: Iterable[Target],
) -> None:
    """Leave for each file which keys were made of its recipes; where that fails, nothing is left. Never raises."""
    names = [str(target) for target in targets]
    for path, unmade in before.items():
        _leave(outcomes, unmade, root, [path], names)


def compile_files(
    paths: Sequence[str],
    what: Sequence[str],
    root: str,
    targets: Sequence[str],
    *,
    jobs: int,
    started: Callable[[Pool], None],
) -> None:
    """Compile all recipes of some files into a root, and leave which keys were made. Lines that are none are passed.

    ``what`` names the recipes as for `made_keys.keys_path`; ``targets`` are names of architectures. ``started`` is
    given the pool before it begins, to stop it.

    Raises:
        GpuCacheError, OSError: nothing could be compiled.
    """
    from gpucache.warm.pool.pool import Pool
    from gpucache.warm.targets import parse_target

    before = made_keys.nothing_made(summary_of(paths))
    given = read_files(paths)
    wanted = list(map(parse_target, targets))
    pool = Pool(given.recipes, root=root, targets=wanted, jobs=jobs, sources=given.trusted)
    started(pool)
    report = pool.run()
    if not report.left:
        _leave(report.outcomes, before, root, what, targets)


def _read(file: str, stdin: BinaryIO | None) -> Iterator[Recipe | BadLine]:
    if file == STDIN and stdin is None:
        raise RecipesError("stdin", "it is closed")
    if file == STDIN and stdin is not None:
        yield from read_recipes(stdin, "stdin")
        return
    try:
        if os.path.isfile(file):
            # What was named may be a link, as files of a Kubernetes ConfigMap are.
            yield from read_recipe_file(os.path.realpath(file))
        else:
            with open(file, "rb") as pipe:  # such as a shell's <(gpucache recipe)
                yield from read_recipes(pipe, file)
    except OSError as error:
        raise RecipesError(file, error.strerror or str(error)) from None


def _is_trusted(path: str) -> bool:
    """Whether nobody but those who are trusted can have written a file."""
    real = os.path.realpath(path)
    try:
        trust = Trust.parse(configuration.environ())
        root = root_of_recorded(real)
        if root:
            trust = trust.in_root(root)
        vet(os.path.dirname(real), trust)
        vet_file(real, trust)
    except GpuCacheError:
        return False
    return True


def _leave(
    outcomes: Sequence[Outcome],
    before: made_keys.MadeKeys,
    root: str,
    what: Sequence[str],
    targets: Sequence[str],
) -> None:
    made = made_keys.made_keys(outcomes, before)
    with suppress(GpuCacheError, OSError):
        made_keys.write(made_keys.keys_path(root, what, targets), made, root)
    recordings.bound(root)
