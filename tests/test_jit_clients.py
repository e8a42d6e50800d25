"""Real JIT compilers under `gpucache run --caches`: where they write, and that the second process compiles nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.jit_clients import Client, Desk, desk
from support.jit_wheels import wheel

from gpucache.layout.jit_caches import JIT_CACHES

REAL = {
    client.cache: client
    for client in (
        Client("tvm-ffi", counted=True),
        Client("warp"),
        Client("numba"),
        Client("jax"),
        Client("cuda-core", argument="{jit}/cuda-core"),
        Client("tilelang", counted=True),
        Client("torch-extensions", counted=True, argument="{work}"),
        Client("cute-dsl"),
    )
}
"""Each is run in two processes, cold and warm."""
OF_TORCH = {"tilelang", "torch-extensions", "quack", "helion", "fla"}
"""What imports torch."""
ASKED = {
    "quack": "import quack.cache; print(quack.cache.get_cache_path())",
    "helion": "from helion.autotuner.local_cache import *; print(get_helion_cache_dir())",
    "fla": "from fla.ops.utils.cache import get_fla_config_dir as ask; print(ask())",
    "kernels": "import kernels.hf_hub; print(kernels.hf_hub.CACHE_DIR)",
}
"""Imported and asked where they will write: to compile they need a GPU."""
FROM_A_WHEEL = {
    "flashinfer": ("flashinfer", "jit.env", "FLASHINFER_JIT_DIR"),
    "cupy": ("cupy", "cuda._compiler_cache", "DiskKernelCacheBackend()._cache_dir"),
    "flashinfer-cubins": ("flashinfer", "jit.env", "FLASHINFER_CUBIN_DIR"),
    "vllm": ("vllm", "envs", "VLLM_CACHE_ROOT"),
    "sglang": ("sglang", "srt.environ", "envs.SGLANG_CACHE_DIR.get()"),
}
"""Of these one module is loaded from the wheel and asked: what they import needs a GPU, or is gigabytes."""
NOT_SHOWN = {
    "deepgemm": "an sdist, which is built with the CUDA of a node with a driver",
    "torch-kernels": "torch compiles such operators for a CUDA device only, in C++ that cannot be asked",
    "cuda": "the driver writes there, and there is none",
    "aiter": "needs ROCm, and asks for an AMD GPU as it is imported",
    "unsloth": "refuses to be imported without a GPU",
}
"""Why where they write cannot be shown without a GPU."""


@pytest.fixture
def at(tmp_path) -> Desk:
    return desk(tmp_path)


def test_each_row_is_shown_once_or_has_a_reason():
    known = {cache.name for cache in JIT_CACHES}
    ways = [REAL, ASKED, FROM_A_WHEEL, NOT_SHOWN]
    shown = [name for way in ways for name in way]
    assert sorted(shown) == sorted(known)


def marked(names: Iterable[str]) -> list[object]:
    """Parameters for these caches, with a mark where the software imports torch."""
    found = []
    for name in names:
        marks = [pytest.mark.torch] if name in OF_TORCH else []
        found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.jit
@pytest.mark.parametrize("name", marked(REAL))
def test_two_processes_share_one_directory_and_the_second_compiles_nothing(at, name):
    client = REAL[name]
    cold = at.run(client)
    written = at.files()
    assert written
    assert {path.split("/")[0] for path in written} == {client.cache}
    assert [str(path) for path in at.home.rglob("*") if path.is_file()] == []
    assert cold.compiled > 0
    assert at.run(client).compiled == 0
    kept = {path: stated for path, stated in at.files().items() if is_content(path)}
    assert kept == {path: stated for path, stated in written.items() if is_content(path)}


def is_content(path: str) -> bool:
    """Whether a file is what was compiled; ninja's logs and locks are written by each process."""
    name = path.rpartition("/")[2]
    return not name.startswith(".ninja") and name != "lock" and not name.endswith("-atime")


@pytest.mark.jit
@pytest.mark.parametrize("name", marked(ASKED))
def test_asked_where_it_will_write_it_names_the_root(at, name):
    done = at.gpucache("run", "--caches", name, "--", sys.executable, "-c", ASKED[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{at.root}/jit/{name}"


@pytest.mark.jit
@pytest.mark.parametrize("name", FROM_A_WHEEL)
def test_its_own_module_names_the_root(at, name):
    package, module, expression = FROM_A_WHEEL[name]
    environ = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a", "TMPDIR": str(at.home)}
    at.environ.update(environ)
    assert wheel(package) is not None
    code = f"from support.jit_wheels import load; m = load({package!r}, {module!r}, {str(at.work)!r})\n"
    code += f"print(m.{expression})"
    at.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{at.environ.get('PYTHONPATH', '')}"
    done = at.gpucache("run", "--caches", name, "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    below = {"flashinfer": "/.cache/flashinfer/", "vllm": "/sm_90"}.get(name, "")
    assert done.stdout.splitlines()[-1].startswith(f"{at.root}/jit/{name}{below}")
