"""Kernels that TorchInductor generates, by the real torch: recorded with their source, and compiled again of that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpucache.kernels.recipe_lines import read_recipe_file

INDUCTOR = Path(__file__).parent / "support/inductor_kernel.py"

pytestmark = [pytest.mark.torch, pytest.mark.compiles]


def run(root, *command, **more):
    """What a command prints whose root this is."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "GPUCACHE_DIR": str(root), **more}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compile_module(root, **more):
    """Compile the module as TorchInductor's worker does; the module's name."""
    plugin = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
    return run(root, INDUCTOR, **plugin, **more).strip()


@pytest.fixture
def recorded(tmp_path):
    """The file of the recipes of a generated module, and the module's name."""
    file = tmp_path / "recipes"
    return file, compile_module(tmp_path / "first", GPUCACHE_RECORD=str(file))


def test_the_source_of_a_generated_module_is_kept(recorded):
    """Its file is in a cache, and may go at any time; its two configurations are two kernels of one source."""
    file, module = recorded
    recipes = list(read_recipe_file(str(file)))
    assert len(recipes) == 2
    for one in recipes:
        assert (one.function.module, one.launched) == (module, False)
        assert one.source == Path(one.function.file).read_text()
        assert "@triton_heuristics.pointwise" in one.source
        assert dict(one.specialized)[(2,)] == ()


def test_a_kept_source_is_compiled_again_and_the_program_compiles_nothing(recorded, tmp_path):
    """Also once the module's file is gone."""
    file, _ = recorded
    shutil.rmtree(tmp_path / "first")
    root = tmp_path / "second"
    root.mkdir(mode=0o700)
    said = json.loads(run(root, "-m", "gpucache", "warm", file, "--json"))
    assert said["counts"] == {"made": 2}
    compile_module(root, GPUCACHE_REQUIRE_HIT="1")
