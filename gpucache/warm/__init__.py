"""Compiles what recipes say, into the store, before a program asks for it.

    from gpucache.warm import Pool, read_recipe_file

    report = Pool(read_recipe_file("recipes.jsonl"), root="/cache").run()

`replay/` is what one process does with one recipe, `pool/` the processes, and `ahead/` what the commands have compiled.
Whoever compiles a recipe imports the modules that it names, hence runs their code. The names below are imported when
they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.kernels.recipe import Recipe, Target
    from gpucache.kernels.recipe_lines import BadLine, BadRecipeFile, read_recipe_file
    from gpucache.warm.outcome import Outcome
    from gpucache.warm.pool.pool import Pool
    from gpucache.warm.pool.report import Compiling, Progress, WarmReport
    from gpucache.warm.pool.scheduler_process import PoolError
    from gpucache.warm.pool.shard import Shard, parse_shard
    from gpucache.warm.targets import parse_targets

_HOME = {
    "BadLine": "kernels.recipe_lines",
    "BadRecipeFile": "kernels.recipe_lines",
    "Compiling": "warm.pool.report",
    "Outcome": "warm.outcome",
    "Pool": "warm.pool.pool",
    "PoolError": "warm.pool.scheduler_process",
    "Progress": "warm.pool.report",
    "Recipe": "kernels.recipe",
    "Shard": "warm.pool.shard",
    "Target": "kernels.recipe",
    "WarmReport": "warm.pool.report",
    "parse_shard": "warm.pool.shard",
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
