"""What Triton's own settings say of the cache: read live, from Triton's knobs (3.4 and later) or the environment."""

from __future__ import annotations

import os
import sys

from gpucache import environment

_modules = sys.modules


def bakes_paths() -> bool:
    """Whether `USE_IR_LOC` bakes the cache's path into the code, so that only Triton's own manager may act."""
    return _is_on("use_ir_loc", environment.USE_IR_LOC)


def ignores_cache() -> bool:
    """Whether this process may neither take a hit nor share what it compiles, for either of the two reasons below."""
    return overriding() or always_compiling()


def overriding() -> bool:
    """Whether `TRITON_KERNEL_OVERRIDE` is on: such a kernel has the key of the plain one, and must reach nobody."""
    return _is_on("override", environment.OVERRIDE)


def always_compiling() -> bool:
    """Whether `TRITON_ALWAYS_COMPILE` is on: hits are ignored, and the result is this process's own."""
    return _is_on("always_compile", environment.ALWAYS_COMPILE)


def _is_on(name: str, variable: environment.Variable[bool]) -> bool:
    knobs = _modules.get("triton.knobs")
    try:
        return bool(getattr(knobs.compilation, name))  # type: ignore[union-attr]
    except AttributeError:  # a Triton without knobs, or without this one
        return variable.read_or_default(os.environ)
