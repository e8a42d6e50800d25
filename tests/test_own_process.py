"""`use`: a process takes the directories of its device by itself."""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ranks import python_with_triton

import gpucache
from gpucache import (
    ConfigurationError,
    DeviceCacheRegistry,
    DeviceIndexError,
    RecordError,
    TooLateError,
)
from gpucache.directories import own_process
from gpucache.environment import OUR_MANAGER
from gpucache.layout.jit_caches import JIT_CACHES

FOUR = {"GPUCACHE_FAKE_DEVICES": "4xH100:9.0"}
INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
DIRECTORY = "TRITON_CACHE_DIR"
MANAGER = "TRITON_CACHE_MANAGER"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """This process has its environment again in the end."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def registry(root: Path) -> DeviceCacheRegistry:
    """Four devices, provisioned, in a process whose environment names their root."""
    os.environ.update(FOUR, GPUCACHE_DIR=str(root))
    made = DeviceCacheRegistry()
    made.provision()
    return made


def test_it_sets_what_a_child_would_be_given_and_says_so(registry):
    wanted = registry.environ(2, plugin=True)
    assert gpucache.use(2) == wanted
    assert {name: os.environ[name] for name in wanted} == wanted
    assert os.environ[DIRECTORY] == f"{registry.root}/triton/2"


def test_saying_it_again_changes_nothing(registry):
    first = gpucache.use(3)
    after = dict(os.environ)
    assert gpucache.use(3) == first
    assert dict(os.environ) == after


def test_before_the_first_kernel_another_device_may_follow(registry):
    """The parent of a forked child has often named its own."""
    gpucache.use(0)
    child = os.fork()
    if child == 0:
        gpucache.use(3)
        os._exit(0 if os.environ[DIRECTORY] == registry.path(3) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert gpucache.use(1) == registry.environ(1, plugin=True)


def test_what_gpucache_run_has_set_is_replaced(registry, gpucache):
    code = "import gpucache, os; print(gpucache.use(2)['TRITON_CACHE_DIR'], os.environ['TRITON_CACHE_DIR'])"
    done = gpucache("run", "--device", 1, "--", sys.executable, "-c", code)
    assert done.stdout == f"{registry.path(2)} {registry.path(2)}\n", done.stderr


def test_what_the_user_has_set_stays_and_the_log_says_so(registry, caplog, tmp_path):
    mine = str(tmp_path / "mine")
    os.environ[DIRECTORY] = mine
    with caplog.at_level(logging.INFO, "gpucache"):
        assert DIRECTORY not in gpucache.use(1)
    assert os.environ[DIRECTORY] == mine
    (line,) = caplog.messages
    assert line == (
        f"kept TRITON_CACHE_DIR={mine}, which was set before gpucache.use(1) would have set "
        f"{registry.path(1)}"
    )


def test_that_is_on_stderr_where_the_log_is_asked_for(registry, python, tmp_path):
    own = {**os.environ, DIRECTORY: str(tmp_path), "GPUCACHE_LOG": "info"}
    done = python("import gpucache; gpucache.use(1)", env=own)
    assert f" INFO kept TRITON_CACHE_DIR={tmp_path}, which was set before" in done.stderr
    assert python("import gpucache; gpucache.use(1)", env={**own, "GPUCACHE_LOG": ""}).stderr == ""


def test_a_manager_of_the_users_stays(registry):
    os.environ[MANAGER] = "megatron:ParallelFileCacheManager"
    assert MANAGER not in gpucache.use(1)
    assert os.environ[MANAGER] == "megatron:ParallelFileCacheManager"


def test_without_the_plugin_only_directories_are_set(registry):
    assert gpucache.use(1, plugin=False) == registry.environ(1)
    assert MANAGER not in os.environ


def test_a_pin_of_the_users_holds(registry):
    os.environ["GPUCACHE_DEVICE"] = registry.devices[2].uuid
    assert gpucache.use(0)[DIRECTORY] == registry.path(2)
    before = dict(os.environ)
    with pytest.raises(DeviceIndexError, match="only ordinal 0"):
        gpucache.use(1)
    assert dict(os.environ) == before


def test_under_a_mask_the_ordinal_is_that_of_cuda(registry):
    os.environ["CUDA_VISIBLE_DEVICES"] = "3,1"
    assert gpucache.use(0)[DIRECTORY] == registry.path(3)


def test_without_a_record_it_fails_and_sets_nothing(root):
    os.environ.update(FOUR, GPUCACHE_DIR=str(root))
    root.mkdir(0o700)
    before = dict(os.environ)
    with pytest.raises(RecordError, match="gpucache provision"):
        gpucache.use(0)
    assert dict(os.environ) == before


def test_disabled_it_sets_nothing(root):
    os.environ["GPUCACHE_DISABLE"] = "1"
    before = dict(os.environ)
    assert gpucache.use(0) == {}
    assert dict(os.environ) == before


def test_torch_keeps_its_root_where_it_could_not_write_ours(registry, monkeypatch):
    monkeypatch.setattr(own_process.os, "access", lambda path, mode: False)
    assert set(registry.environ(0, plugin=True)) - set(gpucache.use(0)) == {INDUCTOR}
    assert INDUCTOR not in os.environ


# ---- JIT caches


def test_caches_are_a_text_or_a_list_and_an_error_names_the_argument(registry):
    wanted = registry.environ(1, plugin=True, caches="tilelang,tvm-ffi")
    assert gpucache.use(1, caches="tilelang,tvm-ffi") == wanted
    for call in (gpucache.use, registry.environ):
        for caches in ("tilelng", ["tilelng"]):
            with pytest.raises(ConfigurationError, match="^caches='tilelng'.* nearest is tilelang"):
                call(1, caches=caches)


def test_jit_caches_go_into_the_root_as_well(registry):
    wanted = registry.environ(1, plugin=True, caches=["tilelang", "tvm-ffi"])
    assert "TVM_FFI_CACHE_DIR" in wanted
    for _ in range(2):
        assert gpucache.use(1, caches=["tilelang", "tvm-ffi"]) == wanted
    assert os.environ["TVM_FFI_CACHE_DIR"] == wanted["TVM_FFI_CACHE_DIR"]


def test_a_jit_cache_of_the_users_stays(registry, tmp_path):
    os.environ["TVM_FFI_CACHE_DIR"] = str(tmp_path)
    assert "TVM_FFI_CACHE_DIR" not in gpucache.use(1, caches=["tvm-ffi"])
    assert os.environ["TVM_FFI_CACHE_DIR"] == str(tmp_path)


def test_what_was_imported_is_too_late_where_it_is_named_and_else_left_out(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    before = dict(os.environ)
    with pytest.raises(TooLateError, match="cupy was imported in this process") as caught:
        gpucache.use(1, caches=["tvm-ffi", "cupy"])
    assert caught.value.what == "jit-cache"
    assert dict(os.environ) == before
    assert "CUPY_CACHE_DIR" in registry.environ(1, caches=["all"])
    held = gpucache.use(1, caches=["all"])
    assert "TVM_FFI_CACHE_DIR" in held
    assert "CUPY_CACHE_DIR" not in {*held, *os.environ}
    os.environ["CUPY_CACHE_DIR"] = "/mine"
    assert "CUPY_CACHE_DIR" not in gpucache.use(1, caches=["cupy"])


@pytest.mark.parametrize(
    "cache", [one for one in JIT_CACHES if one.variables], ids=lambda one: one.name
)
def test_a_cache_names_the_module_that_reads_its_variable_as_it_is_imported(cache):
    assert bool(cache.module) == (cache.read_at == "import")


# ---- what torch has set


@pytest.fixture
def inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's modules that set variables are imported."""
    for name in ("cache_dir_utils", "triton_heuristics"):
        module = f"torch._inductor.runtime.{name}"
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))


def test_torchs_own_default_is_nobodys_choice(registry, inductor):
    os.environ[INDUCTOR] = gpucache.default_cache_dir()
    assert gpucache.use(1) == registry.environ(1, plugin=True)
    assert os.environ[INDUCTOR] == registry.root


def test_the_directory_of_torchs_first_kernel_is_too_late(registry, inductor):
    os.environ[INDUCTOR] = gpucache.default_cache_dir()
    os.environ[DIRECTORY] = f"{os.environ[INDUCTOR]}/triton/1"
    before = dict(os.environ)
    with pytest.raises(TooLateError, match="torchinductor_.*/triton/1") as caught:
        gpucache.use(1)
    assert caught.value.what == "kernel"
    assert dict(os.environ) == before


def test_a_directory_that_looks_so_and_is_gpucaches_is_not_torchs(registry, inductor):
    gpucache.use(1)
    assert gpucache.use(2) == registry.environ(2, plugin=True)


def test_compile_workers_that_lack_the_plugin_are_too_late(registry, monkeypatch):
    module = types.ModuleType("torch._inductor.async_compile")
    started = types.SimpleNamespace(currsize=1)
    pool = types.SimpleNamespace(cache_info=lambda: started)
    module.AsyncCompile = types.SimpleNamespace(process_pool=pool)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(TooLateError, match="compile workers"):
        gpucache.use(1)
    assert gpucache.use(1, plugin=False) == registry.environ(1)


TORCH = """
import os, sys
import torch._dynamo
import gpucache
print(os.environ["TORCHINDUCTOR_CACHE_DIR"] == gpucache.default_cache_dir())
print(gpucache.use(1)["TORCHINDUCTOR_CACHE_DIR"] == os.environ["GPUCACHE_DIR"])
print(torch._inductor.runtime.cache_dir_utils.cache_dir() == os.environ["GPUCACHE_DIR"])
torch.compile(lambda x: x + 1)(torch.ones(3))
print(gpucache.use(2)["TRITON_CACHE_DIR"].endswith("triton/2"))
os.environ["GPUCACHE_DIR"] = sys.argv[1]
gpucache.DeviceCacheRegistry().provision()
try:
    gpucache.use(2)
except gpucache.TooLateError as error:
    print(error.what)
"""


@pytest.mark.torch
def test_after_torch_was_imported_it_is_not_too_late_and_after_a_graph_it_is(
    registry, python, tmp_path
):
    """Devices of one root have one directory for graphs, so that a graph forbids another root only."""
    done = python(TORCH, tmp_path / "other")
    assert done.stdout.splitlines() == ["True"] * 4 + ["graph"], done.stderr


# ---- what Triton has


LATE = """
import os, sys
import kernels, gpucache
from gpucache import TooLateError

def tried(ordinal, **options):
    try:
        return os.path.basename(gpucache.use(ordinal, **options)["TRITON_CACHE_DIR"])
    except TooLateError as error:
        return f"{error.what} in {error.where}"

kept = []
def compile(number):
    kept.append(kernels.triton.compile(kernels.source(number), target=kernels.GPUTarget("cuda", 90, 32)))

if sys.argv[1] == "stock":
    os.environ["TRITON_HOME"] = os.environ["GPUCACHE_DIR"] + "/home"
    compile(0)
    print(tried(1), "|", "TRITON_CACHE_DIR" in os.environ)
    kept.clear()
print(tried(0), "|", tried(1))
compile(0)
print(tried(1), "|", tried(2), "|", tried(1, plugin=False))
"""


@pytest.mark.usefixtures("triton")
class TestWithTriton:
    def test_the_first_kernel_settles_the_device_of_the_process(self, registry):
        said = python_with_triton(LATE, "plugin").splitlines()
        there = registry.path(1)
        assert said == ["0 | 1", f"1 | kernel in {there} | 1"]
        assert list(Path(there).glob("*/scaled.json"))
        assert list(Path(registry.root).glob("gpucache/v1/store/*/*/scaled.json"))

    def test_a_kernel_of_stock_triton_is_too_late_while_it_is_in_memory(self, registry):
        said = python_with_triton(LATE, "stock").splitlines()
        assert said[0] == "kernel in Triton's default directory | False"
        assert said[1] == "0 | 1"

    def test_what_the_program_has_told_triton_itself_stays(self, registry, tmp_path):
        code = """
import os, kernels, gpucache
if hasattr(kernels.triton, "knobs"):
    kernels.triton.knobs.propagate_env = False
    kernels.triton.knobs.cache.dir = "/mine"
else:
    os.environ["TRITON_CACHE_DIR"] = "/mine"
print(sorted(gpucache.use(1)))
"""
        said = python_with_triton(code)
        names = [name for name in registry.environ(1, plugin=True) if name != DIRECTORY]
        assert said == f"{sorted(names)}\n"
        assert registry.environ(1, plugin=True)[MANAGER] == OUR_MANAGER
