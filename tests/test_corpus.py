"""Kernels of every kind that programs have (the package `corpus`), through the plug-in: compiled once, then hit.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpus_runs import launch_corpus

from gpucache.kernels.recipe import Recipe
from gpucache.kernels.recipe_lines import BadLine, read_recipe_file

pytestmark = pytest.mark.usefixtures("triton")


def unsteady(triton: str) -> set[str]:
    """What has another key in each process: Triton 3.4 hashes the text of a function, with its address."""
    return {"a constexpr function as constant"} if triton.startswith("3.4.") else set()


def recorded(path: Path) -> dict[str, Recipe]:
    """The recipes of a file by their keys; each line is one."""
    recipes = list(read_recipe_file(str(path)))
    assert not [line for line in recipes if isinstance(line, BadLine)]
    return {recipe.key: recipe for recipe in recipes}


def test_each_kind_of_kernel_is_compiled_once_and_hit_by_the_next_program(root):
    first = launch_corpus(root, "sm_90")
    assert not first.failed
    assert len(first.compiled) == len(first.keys) >= 70
    again = launch_corpus(root, "sm_90")
    assert set(again.compiled.values()) == unsteady(first.triton)


def test_each_kind_of_kernel_is_recorded_but_what_triton_gives_another_key_each_time(
    root, tmp_path
):
    record = tmp_path / "recipes.jsonl"
    said = launch_corpus(root, "sm_90", env={"GPUCACHE_RECORD": str(record)})
    recipes = recorded(record)
    without = {name for key, name in said.keys.items() if key not in recipes}
    assert without == unsteady(said.triton)
    assert recipes.keys() <= said.keys.keys()
