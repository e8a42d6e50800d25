"""Programs that set Triton's and torch's variables themselves: who wins, and that kernels are compiled once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.ranks import python_with_triton

from gpucache import DeviceCacheRegistry, PrunePolicy, plan, scan
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.grace import NO_GRACE

WORKER = """
import json, os, sys
import redirects, kernels, gpucache
for name in sys.argv[1:]:
    gpucache.use(1) if name == "use" else getattr(redirects, name)()
compiled = kernels.count_compiles()
kernels.triton.compile(kernels.source(0), target=kernels.GPUTarget("cuda", 90, 32))
print(json.dumps([len(compiled), os.environ["TRITON_CACHE_DIR"], os.environ.get("TORCHINDUCTOR_CACHE_DIR")]))
"""
pytestmark = pytest.mark.usefixtures("triton")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that is not below the temporary directory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "root"


@pytest.fixture
def environ(root: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker under `gpucache run`, which no launcher has told a rank."""
    made = {
        **os.environ,
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_FAKE_DEVICES": "4xH100:9.0",
        "TORCHINDUCTOR_CACHE_DIR": str(root),
        "TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager",
        "REDIRECTS_HOME": str(tmp_path / "home"),
    }
    DeviceCacheRegistry(environ=made).provision()
    return made


def worker(environ: dict[str, str], *acts: str) -> Any:
    return json.loads(python_with_triton(WORKER, *acts, env=environ))


@pytest.mark.parametrize(
    ("acts", "triton", "inductor"),
    [
        (
            "vllm",
            "home/vllm/torch_compile_cache/abc/rank_0_0/triton_cache",
            "home/vllm/torch_compile_cache/abc/rank_0_0/inductor_cache",
        ),
        ("use vllm", "root/triton/1", "home/vllm/torch_compile_cache/abc/rank_0_0/inductor_cache"),
        (
            "vllm use",
            "home/vllm/torch_compile_cache/abc/rank_0_0/triton_cache",
            "home/vllm/torch_compile_cache/abc/rank_0_0/inductor_cache",
        ),
        ("sglang", "home/sglang/triton", "root"),
        ("use sglang", "root/triton/1", "root"),
        (
            "use sglang sglang_compile",
            "home/sglang/torch_compile_cache/abc/rank_0_0/triton_cache",
            "home/sglang/torch_compile_cache/abc/rank_0_0/inductor_cache",
        ),
        ("sglang sglang_diffusion", "home/sgl_diffusion/torch_compile_cache/triton", "root"),
        ("use sglang sglang_diffusion", "root/triton/1", "root"),
        ("helion", "root/helion/triton/0", "root"),
        ("use helion", "root/triton/1", "root"),
    ],
)
def test_who_wins_is_as_the_page_says_and_two_workers_compile_once(
    acts, triton, inductor, environ, root, tmp_path
):
    first = worker(environ, *acts.split())
    assert first == [1, str(tmp_path / triton), str(tmp_path / inductor)]
    assert list(Path(first[1]).glob("*/scaled.json"))
    # Another worker, with a directory of another kind.
    other = {**environ, "TRITON_CACHE_DIR": str(root / "triton/3")}
    assert worker(other)[0] == 0
    assert len(scan(str(root)).entries) == 1


@pytest.mark.parametrize("acts", ["vllm", "sglang", "helion"])
def test_a_removal_reaches_views_wherever_a_program_has_them(acts, environ, root):
    directory = worker(environ, acts)[1]
    report = scan(str(root))
    plan(report, CleanPolicy(grace_s=NO_GRACE), environ).execute()
    assert list(Path(directory).glob("*/scaled.json")) == []


TUNING = """
import json, os, sys
import redirects, kernels, gpucache
compiled = kernels.count_compiles()
def compile(number):
    kernels.triton.compile(kernels.source(number), target=kernels.GPUTarget("cuda", 90, 32))
redirects.helion()
with redirects.helion_tuning():
    compile(0)
    compile(1)
tuned = len(compiled)
compile(1)
print(json.dumps([tuned, len(compiled)]))
"""


def test_what_helion_tries_stays_its_own_and_the_best_is_shared(environ, root):
    assert json.loads(python_with_triton(TUNING, env=environ)) == [2, 3]
    assert json.loads(python_with_triton(TUNING, env=environ)) == [2, 2]
    assert len(scan(str(root)).entries) == 1


def test_below_the_temporary_directory_sglang_takes_another(environ, tmp_path):
    """As the page warns: the default root lies there."""
    root = str(tmp_path / "tmp/root")
    own = {**environ, "GPUCACHE_DIR": root, "TORCHINDUCTOR_CACHE_DIR": root}
    DeviceCacheRegistry(environ=own).provision()
    said = worker(own, "use", "sglang", "sglang_diffusion")
    home = f"{tmp_path}/home/sgl_diffusion/torch_compile_cache"
    assert said == [1, f"{home}/triton", f"{home}/inductor"]
    assert worker({**own, "TRITON_CACHE_DIR": f"{root}/triton/3"})[0] == 0
    assert plan(scan(root), PrunePolicy(max_entries=0, grace_s=600), own).kept
