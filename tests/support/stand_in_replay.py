"""Is `gpucache.warm.replay.in_process` where a test is about the pool: a kernel is any function, which is called.

What the function returns is the outcome's `why`; whatever it does, it does in the worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from gpucache.disk.vetting import Trust
from gpucache.kernels.recipe import Recipe, Target
from gpucache.warm.outcome import Outcome
from gpucache.warm.replay.functions import Functions


def prepare(target: Target) -> None:
    """Do what a test asks for."""
    exec(os.environ.get("STAND_IN_PREPARE", ""))


def import_functions(environ: Mapping[str, str], main: str | None, sources: bool) -> Functions:
    return Functions(callable, tuple, Trust.parse(environ), main, sources)


def replay(recipe: Recipe, target: Target, functions: Functions, **settings: Any) -> Outcome:
    began = time.monotonic()
    why = functions.find(recipe.function, recipe.source)()
    return Outcome(
        recipe=recipe.key,
        kernel=recipe.kernel,
        target=str(target),
        end="made",
        key=f"{recipe.key}-{target}",
        seconds=time.monotonic() - began,
        why=str(why),
    )
