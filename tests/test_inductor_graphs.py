"""Graphs that the real TorchInductor compiles for a GPU that is not there: recorded, replayed, compiled again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.ranks import PLUGIN

GRAPHS = Path(__file__).parent / "support/inductor_graphs.py"

pytestmark = [pytest.mark.torch, pytest.mark.compiles]


def run(root: Path, *command: object, **more: str) -> Any:
    """The JSON that a command prints, whose root this is."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "GPUCACHE_DIR": str(root), **more}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def compiled(root: Path, target: str = "sm_90", **more: str) -> tuple[set[str], set[str]]:
    """The keys of what the program asked for, and of what it compiled itself."""
    said = run(root, GRAPHS, target, **PLUGIN, **more)
    keys = {one["key"] for one in said}
    return keys, keys - {one["key"] for one in said if one["hit"]}


def test_after_a_replay_torch_compile_compiles_no_kernel(tmp_path):
    """Nor for an older architecture, for which Inductor writes the same modules; these are in another directory."""
    recipes = tmp_path / "recipes.jsonl"
    keys, missed = compiled(tmp_path / "first", GPUCACHE_RECORD=str(recipes))
    assert missed == keys
    assert len(keys) >= 10
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    warm = ("-m", "gpucache", "warm", recipes, "--json", "--arch", "sm_80,sm_90")
    assert run(root, *warm)["counts"] == {"made": 2 * len(keys)}
    assert compiled(root) == (keys, set())
    older, missed = compiled(root, "sm_80")
    assert (len(older), missed) == (len(keys), set())
