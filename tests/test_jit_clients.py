"""Real JIT compilers under `gpucache run --caches`: where they write, and that the second process compiles nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.jit_clients import Client, Desk, desk
from support.jit_wheels import wheel

from gpucache.layout.jit_caches import JIT_CACHES, by_name

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
    "flash-attention": ("flash_attn", "cute.cache_utils", "get_cache_path()"),
    "sglang": ("sglang", "srt.environ", "envs.SGLANG_CACHE_DIR.get()"),
}
"""Of these one module is loaded from the wheel and asked: what they import needs a GPU, or is gigabytes."""
NOT_SHOWN = {
    "deepgemm": "an sdist, which is built with the CUDA of a node with a driver",
    "trtllm-deepgemm": "C++ of FlashInfer's, which reads the variable as it compiles for a GPU",
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
def test_a_second_process_compiles_nothing_until_prune_has_removed_what_the_first_has_made(
    at, name
):
    """All that is written is in the cache's own directory."""
    client = REAL[name]
    assert at.run(client).compiled > 0
    written = at.files()
    assert {path.split("/")[0] for path in written} == {client.cache}
    assert [str(path) for path in at.home.rglob("*") if path.is_file()] == []
    assert at.run(client).compiled == 0
    assert content(at.files()) == content(written)
    assert pruned(at, name) > 0
    assert content(at.files()) == {}
    assert at.run(client).compiled > 0


@pytest.mark.jit
@pytest.mark.parametrize("name", sorted(set(REAL) - OF_TORCH))
def test_a_cache_that_was_moved_is_hit_where_the_table_says_so(at, name):
    client = REAL[name]
    at.run(client)
    moved = at.elsewhere()
    shutil.copytree(at.root / "jit", moved.root / "jit")
    (moved.root / "jit").chmod(0o700)
    assert (moved.run(client).compiled == 0) == by_name(name).moves


def pruned(at: Desk, *names: str) -> int:
    """How many units `prune` has removed of these caches, none of which was used for a day."""
    yesterday = time.time() - 86400
    for path in (at.root / "jit").rglob("*"):
        os.utime(path, (yesterday, yesterday))
    words = ("--cache", ",".join(names), "--max-age", "12h", "--yes", "--json")
    done = at.gpucache("prune", *words)
    assert done.returncode == 0, done.stderr
    removed: int = json.loads(done.stdout)["removed"]["units"]
    return removed


def content(files: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Those files that are what was compiled; ninja's logs and locks are written by each process."""
    found = {}
    for path, stated in files.items():
        name = path.rpartition("/")[2]
        if not name.startswith(".ninja") and name != "lock" and not name.endswith("-atime"):
            found[path] = stated
    return found


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
    below = {
        "flashinfer": "/.cache/flashinfer/",
        "vllm": "/sm_90",
        "flash-attention": "/sm_90",
    }.get(name, "")
    assert done.stdout.splitlines()[-1].startswith(f"{at.root}/jit/{name}{below}")


REDIRECT = """
import json, os
from support.jit_wheels import load
environ = load("sglang", "srt.environ", {work!r})
environ.redirect_third_party_caches()
names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "TILELANG_CACHE_DIR")
names += ("FLASHINFER_WORKSPACE_BASE",)
found = {{name: os.environ[name] for name in names}}
found["SGLANG_DG_CACHE_DIR"] = environ.envs.SGLANG_DG_CACHE_DIR.get()
found["SGLANG_JIT_CACHE_DIR"] = environ.envs.SGLANG_JIT_CACHE_DIR.get()
print(json.dumps(found))
"""


def redirected(at: Desk, *words: str) -> dict[str, str]:
    """The variables in a program in which SGLang has redirected the caches of others."""
    at.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{at.environ.get('PYTHONPATH', '')}"
    code = REDIRECT.format(work=str(at.work))
    done = at.gpucache("run", *words, "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.jit
def test_what_run_sets_wins_over_sglangs_own_redirection(at):
    at.environ["TMPDIR"] = str(at.home)
    assert redirected(at, "--caches", "all") == {
        "TRITON_CACHE_DIR": f"{at.root}/triton/0",
        "TORCHINDUCTOR_CACHE_DIR": str(at.root),
        "CUDA_CACHE_PATH": f"{at.root}/jit/cuda",
        "TILELANG_CACHE_DIR": f"{at.root}/jit/tilelang",
        "FLASHINFER_WORKSPACE_BASE": f"{at.root}/jit/flashinfer",
        "SGLANG_DG_CACHE_DIR": f"{at.root}/jit/deepgemm",
        "SGLANG_JIT_CACHE_DIR": f"{at.root}/jit/sglang/jit",
    }


@pytest.mark.jit
def test_below_the_temporary_directory_only_what_is_sglangs_stays_its_own(at):
    at.environ["TMPDIR"] = str(at.root.parent)
    found = redirected(at, "--caches", "all")
    assert found["TILELANG_CACHE_DIR"] == f"{at.root}/jit/tilelang"
    assert found["SGLANG_DG_CACHE_DIR"] == f"{at.home}/.cache/sglang/deep_gemm"


@pytest.mark.jit
def test_without_caches_sglang_redirects_all_but_tritons_and_inductors(at):
    found = redirected(at)
    assert found["TRITON_CACHE_DIR"] == f"{at.root}/triton/0"
    assert found["TILELANG_CACHE_DIR"] == f"{at.home}/.cache/sglang/tilelang"


@pytest.mark.jit
def test_four_compilers_in_one_program_fill_one_root(at):
    """And a second process compiles nothing, and nothing is written into the home."""
    four = Client("four")
    assert at.run(four, "all", "jax").compiled > 3
    assert {path.split("/")[0] for path in at.files()} == {"tvm-ffi", "warp", "numba", "jax"}
    assert [str(path) for path in at.home.rglob("*") if path.is_file()] == []
    assert at.run(four, "all", "jax").compiled == 0
    held = {path.split("/")[0]: 0 for path in at.files()}
    for path, (size, _) in at.files().items():
        held[path.split("/")[0]] += size
    shown = json.loads(at.gpucache("du", "--json").stdout)["rows"]
    taken = {row["name"]: row["logical_bytes"] for row in shown}
    assert {name: taken[f"jit/{name}"] for name in held} == held
    assert pruned(at, "all", "jax") >= 4
    assert at.run(four, "all", "jax").compiled > 3


@pytest.mark.jit
def test_below_a_root_with_a_space_tvm_ffi_builds_where_it_did(at):
    """In such a directory its build fails: ninja takes the path for two."""
    at.environ["GPUCACHE_DIR"] = f"{at.root} of mine"
    ran = at.run(REAL["tvm-ffi"])
    assert ran.compiled > 0
    assert "tvm-ffi is not put into the root, and TVM_FFI_CACHE_DIR stays as it is" in ran.stderr
    assert list((at.home / ".cache/tvm-ffi").iterdir())
    at.environ["TVM_FFI_CACHE_DIR"] = f"{at.root} of mine/jit/tvm-ffi"
    with pytest.raises(AssertionError, match="ninja"):
        at.run(REAL["tvm-ffi"])


ONE_FUNCTION = """
import ast, json, os
from support.jit_wheels import source
text = source("vllm", "vllm/compilation/compiler_interface.py")
(function,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == "initialize_inductor_cache"]
space = dict(os=os, _last_inductor_triton_cache_dir=None)
exec(compile(ast.Module([function], []), "vllm", "exec"), space)
space["initialize_inductor_cache"](os.path.join(os.environ["VLLM_CACHE_ROOT"], "torch_compile_cache", "HASH"))
print(json.dumps([os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"]]))
"""


@pytest.mark.jit
def test_vllm_takes_inductors_directory_for_itself_and_leaves_tritons(at):
    """Its own function, without the rest of vLLM: what it takes is in the root all the same."""
    at.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{at.environ.get('PYTHONPATH', '')}"
    done = at.gpucache("run", "--caches", "vllm", "--", sys.executable, "-c", ONE_FUNCTION)
    assert done.returncode == 0, done.stderr
    inductor, triton = json.loads(done.stdout.splitlines()[-1])
    assert inductor == f"{at.root}/jit/vllm/sm_90/torch_compile_cache/HASH/inductor_cache"
    assert triton == f"{at.root}/triton/0"
