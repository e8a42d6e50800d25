"""`Description`: what a kernel's author would know of one entry, as texts and numbers; `describe` reads it.

From files of an entry's directory: the recipe (constants by name, types, options), the metadata (warps, stages, shared
memory), the binary (registers, stack; of AMD's the assembly), the first form (the function's line). Each may be
missing, damaged, or anybody's: what cannot be read is left out, and every text is one that
`gpucache.escapes.printable` still has to see before a terminal does.
"""

from __future__ import annotations

import re

from gpucache.disk.reading import read, read_head
from gpucache.kernels.cubin import resources
from gpucache.kernels.metadata import arch_of, count, metadata_at
from gpucache.kernels.recipe import MOST_BYTES, BadRecipe, Recipe, from_text
from gpucache.kernels.shown_values import shown
from gpucache.layout.paths import RECIPE
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from gpucache.kernels.cubin import Resources
    from gpucache.kernels.metadata import Metadata
    from gpucache.kernels.recipe import Path

_LOCATION = re.compile(r'#loc = loc\("([^"]{1,4096})":(\d{1,9}):')
"""The first line of a kernel's forms: where its function begins (3.2.0, 3.4.0, 3.6.0 and 3.9.0 with line numbers)."""
_HEAD_BYTES = 4200


class Source(Value):
    """Where a kernel's function stands."""

    module: str | None
    """None where only the lines in the compiled code tell of the function."""
    qualname: str
    file: str | None
    line: int | None
    """The first line of the function when it was compiled; None where Triton was told to leave line numbers out."""


class Description(Value, kw_only=True):
    """A compiled kernel as its author knows it."""

    has_recipe: bool
    """Whether there is a recipe; without it, constants, types, options and variables are not known, and empty."""
    constants: Mapping[str, str]
    """The values of the constant parameters by name, in the kernel's order: ``BLOCK`` to ``128``.

    A part of a tuple is ``pair[1]``. Triton 3.2 does not write the names of constants down: ``#4`` is the fifth
    parameter. An argument that was 1 is a constant as well.
    """
    dtypes: Mapping[str, str]
    """The types of all other parameters by name: ``*fp16``, ``i32``."""
    options: Mapping[str, str]
    """The backend's options that differ from its defaults, or were asked for by name."""
    warps: int | None
    """Warps per block, after warp specialisation."""
    stages: int | None
    registers: int | None
    """Per thread: of AMD's the vector registers; None where the binary does not tell, or is not there."""
    spills: int | None
    """Bytes of stack per thread, which Triton calls spills as well (``n_spills``, in words: local memory), of AMD's
    bytes of scratch memory; None as above."""
    shared_bytes: int | None
    """Per block."""
    variables: Mapping[str, str]
    """The environment variables that are part of the key, in Triton's form."""
    target: str | None
    """The architecture: ``sm_90``, ``gfx942``."""
    triton_version: str | None
    function: Source | None


def describe(directory: str, kernel: str, with_function: bool = True) -> Description | None:
    """Describe the kernel in the directory of an entry; None where neither its metadata nor a recipe can be read.

    ``kernel`` is what its files are named after. Reads four files, each bounded, and waits for nobody; three where
    nobody asks for its function. Never raises.
    """
    if "/" in kernel:  # a manifest may say anything
        return None
    files = f"{directory}/{kernel}"
    said = metadata_at(f"{files}.json")
    recipe = recipe_in(directory, for_people=True)
    if said is None and recipe is None:
        return None
    needs = _resources(files, said)
    return Description(
        has_recipe=recipe is not None,
        constants={} if recipe is None else constants_of(recipe),
        dtypes={} if recipe is None else types_of(recipe),
        options={} if recipe is None else _all_shown(recipe.options),
        warps=_option(said, recipe, "num_warps"),
        stages=_option(said, recipe, "num_stages"),
        registers=None if needs is None else needs.registers,
        spills=None if needs is None else needs.stack_bytes,
        shared_bytes=None if said is None else said.shared_bytes,
        variables=_variables(said, recipe),
        target=_target(said, recipe),
        triton_version=_version(said, recipe),
        function=_source(files, kernel, recipe) if with_function else None,
    )


# ---- what the files say


def recipe_in(directory: str, for_people: bool = False) -> Recipe | None:
    """The recipe of an entry's directory, ``for_people`` as `from_text` has it; None where none can be read."""
    try:
        return from_text(read(f"{directory}/{RECIPE}", MOST_BYTES), for_people)
    except (OSError, BadRecipe):
        return None


def _resources(files: str, said: Metadata | None) -> Resources | None:
    """What the kernel needs; where its symbol is not known, a binary of one kernel tells all the same."""
    if said is not None and said.target.startswith("hip:"):
        from gpucache.kernels import amdgcn

        return amdgcn.resources(f"{files}.amdgcn")
    functions = resources(f"{files}.cubin")
    if not functions:
        return None
    if said is not None and said.name in functions:
        return functions[said.name]
    return next(iter(functions.values())) if len(functions) == 1 else None


def _option(said: Metadata | None, recipe: Recipe | None, name: str) -> int | None:
    """An option that is a number; the metadata have it as it became, a recipe as it was asked for."""
    value: Any = None
    if said is not None:
        value = said.options.get(name)
    elif recipe is not None:
        value = recipe.options.get(name)
    return count(value)


def _variables(said: Metadata | None, recipe: Recipe | None) -> Mapping[str, str]:
    if recipe is not None:
        return recipe.variables
    return {} if said is None else said.environment


def _target(said: Metadata | None, recipe: Recipe | None) -> str | None:
    if said is not None:
        return said.arch
    return None if recipe is None else arch_of(str(recipe.target))


def _version(said: Metadata | None, recipe: Recipe | None) -> str | None:
    if said is not None and said.triton_version is not None:
        return said.triton_version
    return None if recipe is None else recipe.triton_version


def _source(files: str, kernel: str, recipe: Recipe | None) -> Source | None:
    """Where the function stands: by the recipe, and by the line that the first form of the kernel has."""
    file, line = location_in(f"{files}.ttir")
    if recipe is None:
        return None if file is None else Source(None, kernel, file, line)
    function = recipe.function
    return Source(function.module, function.qualname, function.file or file, line)


def location_in(path: str) -> tuple[str | None, int | None]:
    """The file and the first line of a kernel's function, by one of its forms in MLIR; None where that is not said."""
    try:
        head, _ = read_head(path, _HEAD_BYTES)
    except OSError:
        return None, None
    match = _LOCATION.match(head.decode(errors="replace"))
    return (None, None) if match is None else (match[1], int(match[2]))


# ---- arguments


def constants_of(recipe: Recipe) -> dict[str, str]:
    """The values of the constant parameters by name, as `Description.constants`."""
    names = parameters_of(recipe)
    found = {}
    for path, value in sorted(recipe.constants, key=lambda constant: constant[0]):
        found[_name(path, names)] = shown(value)
    return found


def parameters_of(recipe: Recipe) -> list[str] | None:
    """The names of the parameters in their order; None for a recipe of Triton 3.2, which leaves constant ones out."""
    names = list(recipe.signature)
    is_whole = all(path[0] < len(names) for path, _ in recipe.constants)
    if not is_whole or recipe.triton_version.startswith("3.2."):
        return None
    return names


def _name(path: Path, names: list[str] | None) -> str:
    first = f"#{path[0]}" if names is None else names[path[0]]
    return first + "".join(f"[{number}]" for number in path[1:])


def types_of(recipe: Recipe) -> dict[str, str]:
    """The types of all other parameters by name, as `Description.dtypes`."""
    types = {}
    for name, value in recipe.signature.items():
        if value != "constexpr":
            types[name] = value if type(value) is str else shown(value).replace("'", "")
    return types


def _all_shown(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: shown(value) for name, value in values.items()}
