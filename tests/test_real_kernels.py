"""Real kernels of packages that people run, by their own Python functions: those of Liger and of fla."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "support/real_kernels.py"
STAGES = (".cubin", ".ptx", ".llir", ".ttir", ".ttgir", ".source")
LEAST = 6
"""So many kernels at least do the chosen functions have."""

pytestmark = [pytest.mark.torch, pytest.mark.compiles]


@pytest.fixture(autouse=True)
def packages() -> None:
    for name in ("liger_kernel", "fla"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs liger-kernel and fla-core: nox -s torch")


def run(
    out: Path, *launcher: str, env: Mapping[str, str], packages: Sequence[str] = ("liger", "fla")
) -> list[dict[str, Any]]:
    """Start some functions of the packages under a launcher; what each process said of its kernels."""
    out.mkdir()
    command = [*launcher, sys.executable, str(SCRIPT), *packages, "few"]
    environ = {
        **os.environ,
        "REAL_KERNELS_OUT": str(out),
        "TRITON_DEFAULT_FP_FUSION": "1",
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        **env,
    }
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    said = [json.loads(path.read_text()) for path in sorted(out.iterdir())]
    assert not [one["failed"] for one in said if one["failed"]], said[0]["failed"]
    return said


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What stock Triton compiles, and its directory."""
    base = tmp_path_factory.mktemp("stock")
    (said,) = run(base / "out", env={"TRITON_CACHE_DIR": str(base / "cache")})
    assert said["compiled"] >= LEAST
    return said, base / "cache"


def files(directory: Path) -> dict[str, bytes]:
    """The content of each file of each entry, but for groups, which name paths, and for manifests."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in directory.glob("*/*")
        if path.is_file() and not path.name.startswith("__")
    }


def test_each_is_compiled_once_and_equals_stocks_byte_for_byte(tmp_path, stock, root):
    """Later processes take the autotuner's results too, and load the best configurations only."""
    env = {"GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "2xH100:9.0"}
    gpucache = [sys.executable, "-m", "gpucache"]
    first, again, other = (
        run(tmp_path / str(number), *gpucache, "run", "--device", device, "--", env=env)[0]
        for number, device in enumerate("001")
    )
    assert first["binaries"] == stock[0]["binaries"]
    assert [first["compiled"], again["compiled"]] == [stock[0]["compiled"], 0]
    assert again["binaries"].items() <= first["binaries"].items()
    assert other["binaries"].items() <= first["binaries"].items()
    assert other["compiled"] == 0
    ours, stocks = files(root / "triton/0"), files(stock[1])
    assert {name: ours.get(name) for name in stocks if name.endswith(STAGES)} == {
        name: data for name, data in stocks.items() if name.endswith(STAGES)
    }
    verified = subprocess.run(
        [*gpucache, "verify", "--root", root], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout) == (0, ""), verified.stderr


def test_four_ranks_of_torchrun_compile_each_once(tmp_path, stock, root):
    env = {"GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "4xH100:9.0"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
    launcher = [*torchrun, "--nproc-per-node", "4", sys.executable, "-m", "gpucache", "run", "--"]
    said = run(tmp_path / "out", *launcher, env=env, packages=["liger"])
    assert len({one["directory"] for one in said}) == 4
    kernels = said[0]["binaries"]
    assert len(kernels) >= LEAST
    assert sum(one["compiled"] for one in said) == len(kernels)
    assert all(one["binaries"] == kernels for one in said)
    assert kernels.items() <= stock[0]["binaries"].items()


def test_after_a_replay_of_their_recipes_the_programs_compile_nothing(tmp_path, root):
    """Of fla's too, which asks torch for the GPU as it is imported; for another architecture all that is replayed."""
    recipes = tmp_path / "recipes.jsonl"
    plugin = {
        "TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager",
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }
    first = tmp_path / "first"
    record = {"GPUCACHE_DIR": str(first), "TRITON_CACHE_DIR": "", "GPUCACHE_RECORD": str(recipes)}
    (recorded,) = run(tmp_path / "out", env={**plugin, **record})
    assert recorded["compiled"] == len(recorded["binaries"]) >= LEAST
    root.mkdir(mode=0o700)
    warm = [sys.executable, "-m", "gpucache", "warm", recipes, "--root", root, "--json"]
    for more in ([], ["--arch", "sm_80"]):
        done = subprocess.run([*warm, *more], capture_output=True, text=True, timeout=280)
        assert json.loads(done.stdout)["counts"] == {"made": recorded["compiled"]}, done.stderr
    env = {**plugin, "GPUCACHE_DIR": str(root)}
    (again,) = run(tmp_path / "again", env=env)
    assert (again["compiled"], again["binaries"]) == (0, recorded["binaries"])
    (older,) = run(tmp_path / "older", env={**env, "REAL_KERNELS_TARGET": "sm_80"})
    assert older["compiled"] == 0
