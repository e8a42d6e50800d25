"""Compiles one recipe again in this process; the only room that imports Triton.

    from gpucache.warm import BadLine, read_recipe_file
    from gpucache.warm.replay import import_functions, prepare, replay

    prepare()
    functions = import_functions()
    for recipe in read_recipe_file("recipes.jsonl"):
        if not isinstance(recipe, BadLine):
            print(replay(recipe, None, functions, root="/cache").end)

For a process that is there for nothing else; in a program with threads or a GPU use `gpucache.warm.Pool`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpucache.warm.replay.in_process import import_functions, prepare, replay

__all__ = ["import_functions", "prepare", "replay"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpucache.warm.replay import in_process

    return getattr(in_process, name)
