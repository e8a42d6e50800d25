"""Compiles what recipes say, into the store, before a program asks for it.

    from gpucache.warm import Pool, read_recipe_file

    report = Pool(read_recipe_file("recipes.jsonl"), root="/cache").run()

`Pool` compiles on all cores, in processes of its own; `gpucache.warm.replay` has what one such process does with one
recipe. Both import the modules that recipes name, hence run their code. The names are imported when they are first
used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.kernels.recipe import Recipe, Target
    from gpucache.kernels.recipe_lines import BadLine, BadRecipeFile, read_recipe_file
    from gpucache.warm.outcome import Outcome
    from gpucache.warm.pool import Pool
    from gpucache.warm.report import Compiling, Progress, WarmReport
    from gpucache.warm.scheduler_process import PoolError
    from gpucache.warm.shard import Shard, parse_shard
    from gpucache.warm.targets import parse_targets

_HOME = {
    "BadLine": "kernels.recipe_lines",
    "BadRecipeFile": "kernels.recipe_lines",
    "Compiling": "warm.report",
    "Outcome": "warm.outcome",
    "Pool": "warm.pool",
    "PoolError": "warm.scheduler_process",
    "Progress": "warm.report",
    "Recipe": "kernels.recipe",
    "Shard": "warm.shard",
    "Target": "kernels.recipe",
    "WarmReport": "warm.report",
    "parse_shard": "warm.shard",
    "parse_targets": "warm.targets",
    "read_recipe_file": "kernels.recipe_lines",
}

__all__ = [
    "BadLine",
    "BadRecipeFile",
    "Compiling",
    "Outcome",
    "Pool",
    "PoolError",
    "Progress",
    "Recipe",
    "Shard",
    "Target",
    "WarmReport",
    "parse_shard",
    "parse_targets",
    "read_recipe_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"gpucache.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
