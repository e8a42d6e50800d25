"""Kernels of every kind that programs have (the package `corpus`): compiled once, recorded, replayed, then hit.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

import pytest
from support.corpus_runs import Recorded, launch_corpus, record_corpus, warm_corpus

from gpucache.kernels.recipe_lines import BadLine, read_recipe_file

pytestmark = pytest.mark.usefixtures("triton")

NOT_IMPORTED = {"a kernel that a function makes", "a kernel made from a text"}
"""Launches of kernels that no import makes."""
CHANGED = "a kernel whose text is changed as the program runs"


def without_recipe(triton: str) -> set[str]:
    """Launches whose kernels have no recipe, by the version of Triton.

    Of flags that are no member by name no other process can be told. Triton 3.4 hashes the text of a constexpr
    function, in which its address stands.
    """
    said = {"a constant of flags"}
    return said | {"a constexpr function as constant"} if triton.startswith("3.4.") else said


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Recorded:
    return record_corpus(tmp_path_factory.mktemp("recorded"), "sm_90")


def test_each_kind_of_kernel_is_compiled_once_and_hit_by_the_next_program(recorded):
    said = recorded.said
    assert not said.failed
    assert len(said.compiled) == len(said.keys) >= 80
    again = launch_corpus(recorded.root, "sm_90")
    unsteady = {"a constexpr function as constant"} if said.triton.startswith("3.4.") else set()
    assert set(again.compiled.values()) == unsteady


def test_each_kind_of_kernel_has_a_recipe_but_what_no_other_process_can_be_told(recorded):
    recipes = list(read_recipe_file(str(recorded.recipes)))
    assert not [line for line in recipes if isinstance(line, BadLine)]
    keys = {recipe.key for recipe in recipes}
    said = recorded.said
    assert keys <= said.keys.keys()
    assert said.launches(said.keys.keys() - keys) == without_recipe(said.triton)


def test_after_a_replay_the_program_compiles_nothing_but_what_no_import_makes(recorded, root):
    said = recorded.said
    outcomes = warm_corpus(root, recorded.recipes)
    ends = {one["recipe"]: one["end"] for one in outcomes}
    assert set(ends.values()) <= {"made", "there", "made (source changed)", "cannot be imported"}
    hidden = [key for key, end in ends.items() if end == "cannot be imported"]
    assert said.launches(hidden) == NOT_IMPORTED
    edited = [key for key, end in ends.items() if end == "made (source changed)"]
    assert said.launches(edited) == {CHANGED} & said.asked.keys()
    unlike = [one for one in outcomes if one["end"] in ("made", "there")]
    assert [one for one in unlike if one["key"] != one["recipe"]] == []
    again = launch_corpus(root, "sm_90")
    missed = NOT_IMPORTED | {CHANGED} | without_recipe(said.triton)
    assert set(again.compiled.values()) == missed & said.asked.keys()
