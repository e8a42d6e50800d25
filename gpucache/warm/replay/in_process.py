"""Compile one recipe again, into the store and for no device: Triton's plug-in publishes what Triton compiles.

`prepare` once, in a process that is there for nothing else: it hides all GPUs, and runs the code of whatever modules
the recipes name. Then `replay` as often as wanted, in this process or in forks of it.
"""

from __future__ import annotations

import os
import time

from gpucache import configuration, environment
from gpucache.disk.vetting import Trust
from gpucache.kernels.recipe import Recipe, Target
from gpucache.layout.paths import resolve_root
from gpucache.triton.location import Location, store_only
from gpucache.warm.outcome import Outcome
from gpucache.warm.replay.cuda_answers import answer_by
from gpucache.warm.replay.functions import Functions
from gpucache.warm.replay.one_replay import Replay, WatchedLocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_HIDDEN = {
    environment.VISIBLE_DEVICES.name: "",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    # torch then answers `torch.cuda.is_available` by this list and NVML, and does not touch CUDA
    # (`torch/cuda/__init__.py` of 2.13).
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_UNSET = (
    environment.ALWAYS_COMPILE.name,
    environment.OVERRIDE.name,
    environment.REQUIRE_HIT.name,
    environment.TRITON_DIRECTORY.name,
    environment.KERNEL_DUMP,
    environment.INTERPRET,
    # The default of an option from when Triton is imported (`CUDAOptions.ptx_options`, since 3.6); recipes name it.
    "PTXAS_OPTIONS",
)
"""Variables of Triton's with which nothing would be compiled, or nothing would be shared."""


def prepare(target: Target | None = None) -> None:
    """Make this process one that compiles and touches no GPU; import Triton, and have it hash its own files.

    For a process that is there for nothing else, with one thread, before any module of a user is imported: the
    environment and Triton's active driver stay so. ``target`` is what modules are told that ask for a target while
    they are imported.

    Raises:
        ImportError: there is no Triton, or not one that gpucache knows.
    """
    os.environ.update(_HIDDEN)
    for name in _UNSET:
        os.environ.pop(name, None)
    triton = _triton()
    asked = target or Target("cuda", 90, 32)
    triton.put_driver(asked)
    answer_by(asked)
    triton.hash_triton()


def import_functions(
    environ: Any = None, main: str | None = None, sources: bool = False
) -> Functions:
    """The functions of this process, as `Functions`; whose files are executed is as `GPUCACHE_TRUST_UIDS` says.

    Raises:
        ConfigurationError: a variable makes no sense.
    """
    triton = _triton()
    settings = configuration.environ(environ)
    return Functions(
        triton.is_kernel,
        triton.all_kernels,
        Trust.parse(settings),
        main,
        sources,
        resolve_root(None, settings),
    )


def replay(
    recipe: Recipe,
    target: Target | None,
    functions: Functions,
    *,
    root: str,
    exact: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Compile a recipe for a target, its own if that is None, into the store of ``root``, unless it is there.

    The function is compiled as it is now; with ``exact`` only if the key is the recorded one, or, where target or
    Triton are others, if its source is. With ``dry_run`` nothing is compiled, and what would be ends as *missing*.
    Whatever goes wrong is an outcome: an exception of any kind from Triton and from the user's code too.

    In a process after `prepare`, by one thread. Beside any number of programs and replays: as with a launch of the
    same kernel one of them compiles, and the others wait.

    Raises:
        GpuCacheError: the root is not safe, or cannot be looked at.
        OSError: the disk refused the root.
    """
    began = time.monotonic()
    wanted = target or recipe.target
    one = Replay(recipe, wanted, functions, _location(root), exact, dry_run)
    end, why = one.ended()
    return Outcome(
        recipe=recipe.key,
        kernel=recipe.kernel,
        target=str(wanted),
        end=end,
        key=one.key if end in ("made", "made (source changed)", "there") else None,
        seconds=time.monotonic() - began,
        why=why,
    )


def _triton() -> ModuleType:
    # Imported late: `prepare` sets the environment before.
    from gpucache.warm.replay import running_triton

    return running_triton


_locations: dict[tuple[int, str], WatchedLocation] = {}


def _location(root: str) -> WatchedLocation:
    """Where to publish; a forked process has one of its own."""
    place = (os.getpid(), root)
    if place not in _locations:
        found = store_only(root, configuration.environ(root=root))
        fields = {name: getattr(found, name) for name in Location._fields}
        _locations[place] = WatchedLocation(**fields, failures=[])
    return _locations[place]
