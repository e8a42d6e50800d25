"""What the demo compares: the ranks of a node with stock Triton, and the same ranks with the plug-in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from gpucache import environment
from gpucache.demo.place import Place
from gpucache.demo.ranks import Kernel, Round, compile_in_ranks
from gpucache.directories.local_rank import RANK_VARIABLES
from gpucache.directories.python_path import without_site
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.errors import NotInstalledError
from gpucache.machine.cores import usable_cores
from gpucache.values import Value

_DIRECTORIES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR", environment.TRITON_HOME.name)
"""What else would have a rank write or read outside the demo's directory."""
_BEGINNINGS = (environment.PREFIX, "TRITON_", "MLIR_", "LLVM_IR_", "NVPTX_", "AMDGCN_")
_OTHERS = (
    *RANK_VARIABLES,
    environment.INDUCTOR_ROOT.name,
    environment.VISIBLE_DEVICES.name,
    environment.USE_IR_LOC.name,
)


class Comparison(Value):
    """What the demo has found."""

    ranks: int
    kernels: int
    cores: int
    """So many processes could compute at once here."""
    stock: Round
    """Stock Triton, with a directory for each rank."""
    shared: Round
    """The plug-in."""

    @property
    def has_core_for_each(self) -> bool:
        """Whether no rank had to wait for another one's core."""
        return self.cores >= self.ranks


Show = Callable[[Kernel], None]


def compare(
    ranks: int, kernels: int, environ: Mapping[str, str], show: Callable[[str], Show]
) -> Comparison:
    """Compile the same kernels in as many ranks with stock Triton, then with the plug-in; takes no GPU.

    Both begin with empty caches in a directory of the demo's own, which is gone at the end. Of ``environ`` the ranks
    have what does not change where and whether Triton caches. ``show`` is asked before each of both, ``stock`` and
    ``gpucache``, for what is told of each kernel.

    Stock Triton has a directory for each rank, as torch gives each device one (`cache_dir_utils.py`,
    ``triton_cache_dir`` of torch 2.13). In one for all it compiles about as often, since nobody waits, and keeps the
    last copy (`benchmarks/bench_cold_start.txt`: 90 of 96 compiles).

    Raises:
        NotInstalledError: this Python has no Triton.
        RankError: a rank ended early.
        GpuCacheError: there is no place for the caches.
        OSError: no process can be started.
    """
    if find_spec("triton") is None:
        raise NotInstalledError("triton", "the demo compiles with it", "demo")
    with Place() as place:
        base = _base(environ, place.path)
        os.mkdir(base["TMPDIR"])
        stock = compile_in_ranks(
            place, "stock", _stock(place.path, ranks, base), kernels, show("stock")
        )
        shared = compile_in_ranks(
            place, "gpucache", _shared(place.path, ranks, base), kernels, show("gpucache")
        )
    return Comparison(ranks, kernels, usable_cores(), stock, shared)


def _base(environ: Mapping[str, str], place: str) -> dict[str, str]:
    """The variables of each rank, without the user's choices of what to cache where, which would spoil all."""
    base = {name: value for name, value in environ.items() if not _is_of_caching(name)}
    # Under `gpucache run` the plug-in would be on in stock Triton's ranks too.
    path = without_site(base.pop(environment.PYTHON_PATH.name, ""))
    if path:
        base[environment.PYTHON_PATH.name] = path
    return base | dict.fromkeys(_DIRECTORIES, os.path.join(place, "tmp"))


def _is_of_caching(name: str) -> bool:
    """Whether a variable may change what is cached or printed, or which rank this is. Triton's tools do not."""
    if name.startswith("TRITON_") and name.endswith("_PATH"):
        return False
    return name in _OTHERS or name.startswith(_BEGINNINGS)


def _stock(place: str, ranks: int, base: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each rank with stock Triton."""
    environs = []
    for rank in range(ranks):
        directory = os.path.join(place, "stock", str(rank))
        environs.append({**base, environment.TRITON_DIRECTORY.name: directory})
    return environs


def _shared(place: str, ranks: int, base: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each rank with the plug-in, as `gpucache run` gives it on a node with a GPU for each.

    What files of settings may say against sharing holds not: the environment wins.
    """
    wanted = {
        environment.FAKE_DEVICES.name: str(ranks),
        environment.DISABLE.name: "0",
        environment.SHARE.name: "1",
        environment.LOG.name: "error",
    }
    registry = DeviceCacheRegistry(os.path.join(place, "gpucache"), environ={**base, **wanted})
    registry.provision()
    environs = []
    for rank in range(ranks):
        environs.append(
            {**base, **wanted, "LOCAL_RANK": str(rank), **registry.environ(rank, plugin=True)}
        )
    return environs
