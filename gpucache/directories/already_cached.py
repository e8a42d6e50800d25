"""What Triton and torch have cached in this process so far, and where: by which `gpucache.use` comes too late.

Both are looked at in ``sys.modules``, and never imported.
"""

from __future__ import annotations

import gc
import re
import sys

from gpucache.environment import (
    INDUCTOR_ROOT,
    MANAGER,
    OUR_MANAGER,
    TRITON_DIRECTORY,
    was_set_by_run,
)
from gpucache.layout.paths import default_root
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from gpucache.errors import Cached
    from gpucache.layout.jit_cache import JitCache

_KNOBS = {TRITON_DIRECTORY.name: "dir", MANAGER.name: "manager_class"}
"""What Triton's `knobs.cache` calls a variable (3.4.0 to 3.9.0)."""
_ORDINAL = re.compile(r"[0-9]+")


class Late(Value):
    """Something that was cached elsewhere."""

    what: Cached
    where: str
    """The directory, or Triton's or torch's default in words."""


def late(environ: Mapping[str, str], wanted: Mapping[str, str]) -> Late | None:
    """What this process has cached already under other values than it is to have from now on; None if nothing.

    A kernel counts as long as this process has it in memory, whether it was compiled or loaded. Limit: what `gc.freeze`
    has put aside is not seen.
    """
    moved = {name for name, value in wanted.items() if _in_effect(name, environ) != value}
    triton, manager = TRITON_DIRECTORY.name in moved, MANAGER.name in moved
    where = _in_effect(TRITON_DIRECTORY.name, environ) or "Triton's default directory"
    if triton and TRITON_DIRECTORY.name in written_by_torch(environ):
        return Late("kernel", where)
    if (triton or manager) and _has_kernel():
        return Late("kernel", where)
    if INDUCTOR_ROOT.name in moved and _has_graph():
        return Late("graph", environ.get(INDUCTOR_ROOT.name, "torch's default directory"))
    if manager and _has_compile_workers():
        return Late("compile-workers", where)
    return None


def read_at_import(names: Iterable[str]) -> list[JitCache]:
    """The JIT caches of these names whose variables were read as their software was imported, in this process."""
    from gpucache.layout.jit_caches import JIT_CACHES  # most processes choose none

    wanted = set(names)
    return [one for one in JIT_CACHES if one.name in wanted and one.module in sys.modules]


def _in_effect(name: str, environ: Mapping[str, str]) -> str | None:
    return knob(name) or environ.get(name) or None


def knob(name: str) -> str | None:
    """The value that the program has given Triton in the place of a variable (``triton.knobs.cache.dir = …``)."""
    knobs = getattr(sys.modules.get("triton.knobs"), "cache", None)
    set_here: dict[str, Any] = getattr(knobs, "__dict__", {})
    value = set_here.get(_KNOBS.get(name, ""))
    if isinstance(value, type):
        return _class_name(value)
    return value if isinstance(value, str) else None


def _class_name(manager: type) -> str:
    """A cache manager as `TRITON_CACHE_MANAGER` names it."""
    if manager is getattr(sys.modules.get("gpucache.triton.manager"), "DeviceCacheManager", None):
        return OUR_MANAGER
    return f"{manager.__module__}:{manager.__qualname__}"


def written_by_torch(environ: Mapping[str, str]) -> set[str]:
    """The variables that torch itself has set in this process, by which nobody has chosen anything.

    Torch writes its default into `TORCHINDUCTOR_CACHE_DIR` as soon as `torch._dynamo` is imported
    (`_inductor/runtime/cache_dir_utils.py`, and the last line of `_dynamo/package.py`, of 2.13.0), and before its first
    kernel ``<that>/triton/<ordinal>`` into `TRITON_CACHE_DIR` (`_inductor/runtime/triton_heuristics.py`).
    """
    return {name for name in _as_torch_writes(environ) if not was_set_by_run(name, environ)}


def _as_torch_writes(environ: Mapping[str, str]) -> Iterator[str]:
    """The variables that are as torch writes them."""
    root = environ.get(INDUCTOR_ROOT.name)
    if "torch._inductor.runtime.cache_dir_utils" not in sys.modules or not root:
        return
    if root == default_root(environ):
        yield INDUCTOR_ROOT.name
    directory, _, ordinal = environ.get(TRITON_DIRECTORY.name, "").rpartition("/")
    is_inductors = directory == f"{root}/triton" and _ORDINAL.fullmatch(ordinal)
    if is_inductors and "torch._inductor.runtime.triton_heuristics" in sys.modules:
        yield TRITON_DIRECTORY.name


def _has_kernel() -> bool:
    """Whether a kernel of Triton's is in memory (`triton/compiler/compiler.py` of 3.2.0 to 3.9.0).

    Triton keeps no list of them. To go through all objects takes some 10 ms for each 100,000, and only a process is
    asked that has imported Triton's compiler and is about to change where it caches.
    """
    kind = getattr(sys.modules.get("triton.compiler.compiler"), "CompiledKernel", None)
    if kind is None:
        return False
    return any(type(one) is kind for one in gc.get_objects())


def _has_graph() -> bool:
    """Whether TorchInductor has compiled or loaded a graph (`_inductor/codecache.py` of torch 2.13.0)."""
    code = getattr(sys.modules.get("torch._inductor.codecache"), "PyCodeCache", None)
    return bool(getattr(code, "modules", None))


def _has_compile_workers() -> bool:
    """Whether TorchInductor has started its compile workers (`_inductor/async_compile.py` of torch 2.13.0).

    They have the environment of their start, but for the two directories, which each task tells them.
    """
    compiling = getattr(sys.modules.get("torch._inductor.async_compile"), "AsyncCompile", None)
    pool = getattr(compiling, "process_pool", None)
    cache_info = getattr(pool, "cache_info", None)
    return cache_info is not None and bool(cache_info().currsize)
