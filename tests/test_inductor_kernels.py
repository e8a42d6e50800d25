"""Kernels that the real TorchInductor generates: recorded with their source, and compiled again of that."""

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
LEAST = 4
"""So many kernels at least do the graphs have."""

pytestmark = [pytest.mark.torch, pytest.mark.compiles]


def run(root, *command, **more):
    """What a command prints whose root this is."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "GPUCACHE_DIR": str(root), **more}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compile_graphs(root, **more):
    """Compile the graphs through the plug-in; the names of the modules that were generated."""
    plugin = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
    return json.loads(run(root, INDUCTOR, **plugin, **more))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The file of the recipes of the generated modules, the modules' names, and the root."""
    place = tmp_path_factory.mktemp("recorded")
    file = place / "recipes"
    return file, compile_graphs(place / "root", GPUCACHE_RECORD=str(file)), place / "root"


def test_the_sources_of_generated_modules_are_kept(recorded):
    """Their files are in a cache, and may go at any time."""
    file, modules, _ = recorded
    recipes = list(read_recipe_file(str(file)))
    assert len(recipes) >= LEAST
    assert {one.function.module for one in recipes} == set(modules)
    for one in recipes:
        assert not one.launched
        assert one.source == Path(one.function.file).read_text()
        assert "@triton_heuristics." in one.source


def test_kept_sources_are_compiled_again_and_the_program_compiles_nothing(recorded, tmp_path):
    """Also once the modules' files are gone."""
    file, _, first = recorded
    kept = tmp_path / "recipes"
    shutil.copy(file, kept)
    moved = first.rename(tmp_path / "moved")
    root = tmp_path / "second"
    root.mkdir(mode=0o700)
    try:
        said = json.loads(run(root, "-m", "gpucache", "warm", kept, "--json"))
    finally:
        moved.rename(first)
    assert said["counts"] == {"made": len(list(read_recipe_file(str(kept))))}
    compile_graphs(root, GPUCACHE_REQUIRE_HIT="1")
