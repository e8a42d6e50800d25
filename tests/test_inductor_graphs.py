"""Graphs that the real TorchInductor compiles for a GPU that is not there: recorded, replayed, compiled again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.ranks import PLUGIN

from gpucache.kernels.recipe_lines import read_recipe_file

GRAPHS = Path(__file__).parent / "support/inductor_graphs.py"

pytestmark = [pytest.mark.torch, pytest.mark.compiles]


def run(root: Path, *command: object, **more: str) -> Any:
    """The JSON that a command prints, whose root this is."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "GPUCACHE_DIR": str(root), **more}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def asked_for(root: Path, target: str = "sm_90", **more: str) -> list[dict[str, Any]]:
    """What the program asked for: each kernel's module and key, and whether that was a hit."""
    said: list[dict[str, Any]] = run(root, GRAPHS, target, **PLUGIN, **more)
    return said


def keys_of(said: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """The keys of what the program asked for, and of what it compiled itself."""
    keys = {one["key"] for one in said}
    return keys, keys - {one["key"] for one in said if one["hit"]}


class Recorded(NamedTuple):
    """A program that found nothing in its root, and was recorded."""

    said: list[dict[str, Any]]
    root: Path
    recipes: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    place = tmp_path_factory.mktemp("recorded")
    root, recipes = place / "root", place / "recipes.jsonl"
    return Recorded(asked_for(root, GPUCACHE_RECORD=str(recipes)), root, recipes)


@pytest.fixture
def warmed(tmp_path: Path) -> Path:
    """The root into which recipes are compiled."""
    root = tmp_path / "warmed"
    root.mkdir(mode=0o700)
    return root


def test_the_sources_of_generated_modules_are_kept(recorded):
    """Their files are in a cache, and may go at any time."""
    recipes = list(read_recipe_file(str(recorded.recipes)))
    keys, missed = keys_of(recorded.said)
    assert missed == keys == {one.key for one in recipes}
    assert len(keys) >= 10
    assert {one.function.module for one in recipes} == {one["module"] for one in recorded.said}
    for one in recipes:
        assert not one.launched
        assert one.source == Path(one.function.file).read_text()
        assert "@triton_heuristics." in one.source


def test_kept_sources_are_compiled_again_and_the_program_compiles_nothing(
    recorded, tmp_path, warmed
):
    """Also once the modules' files are gone."""
    kept = shutil.copy(recorded.recipes, tmp_path / "recipes")
    moved = recorded.root.rename(tmp_path / "moved")
    try:
        said = run(warmed, "-m", "gpucache", "warm", kept, "--json")
    finally:
        moved.rename(recorded.root)
    assert said["counts"] == {"made": len(list(read_recipe_file(str(kept))))}
    asked_for(warmed, GPUCACHE_REQUIRE_HIT="1")


def test_after_a_replay_for_two_architectures_torch_compile_compiles_no_kernel(recorded, warmed):
    """For an older one Inductor writes the same modules; these are in another directory."""
    keys, _ = keys_of(recorded.said)
    warm = ("-m", "gpucache", "warm", recorded.recipes, "--json", "--arch", "sm_80,sm_90")
    assert run(warmed, *warm)["counts"] == {"made": 2 * len(keys)}
    assert keys_of(asked_for(warmed)) == (keys, set())
    older, missed = keys_of(asked_for(warmed, "sm_80"))
    assert (len(older), missed) == (len(keys), set())
