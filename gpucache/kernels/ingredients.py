"""`Ingredients`: what a kernel's key was made of, as far as an entry, or the process that misses one, can tell.

Not all of the key is told by anything on disk: Triton's sources and its libtriton, the version of ptxas, comments and
default arguments of the kernel are in it (`get_cache_key`, `runtime/cache.py` of Triton 3.9.0, and `src.hash`).
"""

from __future__ import annotations

from gpucache.kernels.description import (
    constants_of,
    location_in,
    parameters_of,
    recipe_in,
    types_of,
)
from gpucache.kernels.metadata import Metadata, metadata_at
from gpucache.kernels.recipe import Recipe
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_DIVISIBILITY = "tt.divisibility"


class Ingredients(Value):
    """What a kernel's key was made of."""

    metadata: Metadata
    recipe: Recipe | None
    """None where the entry has none: then constants and types are not known by name."""
    file: str | None
    """Where the kernel's function stands; None where Triton left line numbers out, or its forms are gone."""
    line: int | None

    @property
    def cache_key(self) -> str:
        """Triton's digest of the function's source and all that it calls, with its first line; ``""`` if unknown."""
        return "" if self.recipe is None else self.recipe.function.cache_key

    @property
    def triton_version(self) -> str | None:
        """The version of Triton; its metadata do not say 3.2. None where unknown."""
        said = self.metadata.triton_version
        return said if said is not None or self.recipe is None else self.recipe.triton_version

    @property
    def constants(self) -> Mapping[str, str]:
        """The values of the constant parameters by name; empty without a recipe."""
        return {} if self.recipe is None else constants_of(self.recipe)

    @property
    def types(self) -> Mapping[str, str]:
        """The types of the other parameters by name, with what was found out about each: ``*fp32, divisible by 16``."""
        return {} if self.recipe is None else _specialized_types(self.recipe)


def ingredients_in(directory: str, kernel: str) -> Ingredients | None:
    """The ingredients of the kernel in the directory of an entry; None where its metadata cannot be read.

    ``kernel`` is what its files are named after. Reads three files, each bounded, and waits for nobody. Never raises.
    """
    if "/" in kernel:  # a manifest may say anything
        return None
    metadata = metadata_at(f"{directory}/{kernel}.json")
    if metadata is None:
        return None
    file, line = location_in(f"{directory}/{kernel}.ttir")
    return Ingredients(metadata, recipe_in(directory), file, line)


def _specialized_types(recipe: Recipe) -> dict[str, str]:
    types = types_of(recipe)
    names = parameters_of(recipe)
    constant = {path for path, _ in recipe.constants}
    for path, properties in recipe.specialized:
        if not properties or path in constant:  # Triton 3.2 specializes constants too
            continue
        name = f"#{path[0]}" if names is None or path[0] >= len(names) else names[path[0]]
        found = ", ".join(_property(*said) for said in properties)
        types[name] = f"{types[name]}, {found}" if name in types else found
    return types


def _property(name: str, value: int) -> str:
    """What was found out about an argument, in words."""
    if name == _DIVISIBILITY:
        return f"divisible by {value}"
    return f"{name.removeprefix('tt.')} {value}"
