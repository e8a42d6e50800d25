"""Recipes of the package `corpus` replayed for another architecture, from another place, and after an edit."""

from __future__ import annotations

from collections import Counter

import pytest
from support.corpus_runs import (
    Recorded,
    copy_program,
    launch_corpus,
    record_corpus,
    warm_corpus,
)

pytestmark = pytest.mark.usefixtures("triton")

UNREPLAYED = {
    "a constant of flags",
    "a kernel made from a text",
    "a kernel that a function makes",
    "a kernel whose text is changed as the program runs",
}
"""Launches whose kernels no replay makes (`test_corpus`)."""
REFUSED = {"sm_80": {"num_ctas"}}
"""Launches that an architecture cannot have."""
FEW = (
    "vector add",
    "matmul, autotuned, odd sizes",
    "layer norm, helpers of another module, one not inlined",
    "a tuple of functions",
    "descriptors of the host",
    "a kernel in a class",
    "a kernel of the script",
)


@pytest.fixture(scope="module")
def h100(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Recorded:
    return record_corpus(tmp_path_factory.mktemp("h100"), "sm_90")


@pytest.fixture(scope="module")
def mi300(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Recorded:
    return record_corpus(tmp_path_factory.mktemp("mi300"), "gfx942")


def ends(outcomes: list[dict[str, str]]) -> dict[str, int]:
    return dict(Counter(one["end"] for one in outcomes))


def test_replayed_for_other_architectures_the_programs_there_compile_nothing(h100, root):
    targets = ["sm_80", "sm_100", "sm_120"]
    outcomes = warm_corpus(root, h100.recipes, "--arch", ",".join(targets))
    refused = [one for one in outcomes if one["end"] == "not for this target"]
    assert {(one["target"], one["recipe"]) for one in refused} == {
        ("sm_80", key) for key, name in h100.said.keys.items() if name == "num_ctas"
    }
    assert "failed" not in ends(outcomes)
    for target in targets:
        said = launch_corpus(root, target)
        assert said.failed.keys() == REFUSED.get(target, set())
        assert set(said.compiled.values()) == UNREPLAYED
        made = {one["key"] for one in outcomes if one["target"] == target and one["end"] == "made"}
        assert made <= said.keys.keys()


def test_recipes_of_amd_are_replayed_for_its_other_architectures(mi300, root):
    outcomes = warm_corpus(root, mi300.recipes, "--arch", "gfx90a,gfx950")
    assert ends(outcomes).keys() <= {"made", "there", "made (source changed)", "cannot be imported"}
    for target in ("gfx90a", "gfx950"):
        said = launch_corpus(root, target)
        assert not said.failed
        assert set(said.compiled.values()) == UNREPLAYED


def test_a_moved_source_tree_is_replayed_under_the_same_keys(root, tmp_path):
    recorded = record_corpus(
        tmp_path / "recorded", "sm_90", *FEW, support=copy_program(tmp_path / "before")
    )
    moved = tmp_path / "after"
    (tmp_path / "before").rename(moved)
    outcomes = warm_corpus(root, recorded.recipes, support=moved)
    assert ends(outcomes) == {"made": len(recorded.said.keys)}
    assert not launch_corpus(root, "sm_90", *FEW, support=moved).compiled


def test_an_edit_above_a_kernel_is_told_and_the_edited_program_compiles_nothing(root, tmp_path):
    support = copy_program(tmp_path / "program")
    recorded = record_corpus(tmp_path / "recorded", "sm_90", *FEW, support=support)
    helpers = support / "corpus/helpers.py"
    helpers.write_text("# one line more\n" + helpers.read_text())
    outcomes = warm_corpus(root, recorded.recipes, support=support)
    changed = [one["recipe"] for one in outcomes if one["end"] == "made (source changed)"]
    calls_helpers = {
        "layer norm, helpers of another module, one not inlined",
        "a tuple of functions",
    }
    assert recorded.said.launches(changed) == calls_helpers
    assert ends(outcomes) == {
        "made": len(recorded.said.keys) - len(changed),
        "made (source changed)": len(changed),
    }
    again = launch_corpus(root, "sm_90", *FEW, support=support)
    assert not again.compiled
    assert again.launches(again.keys.keys() - recorded.said.keys.keys()) == calls_helpers


def test_an_edited_function_is_not_compiled_where_only_what_was_recorded_is_wanted(root, tmp_path):
    support = copy_program(tmp_path / "program")
    recorded = record_corpus(tmp_path / "recorded", "sm_90", *FEW, support=support)
    helpers = support / "corpus/helpers.py"
    helpers.write_text("# one line more\n" + helpers.read_text())
    outcomes = warm_corpus(root, recorded.recipes, "--exact", support=support)
    assert "made (source changed)" not in ends(outcomes)
    made = {one["key"] for one in outcomes if one["end"] == "made"}
    assert made < recorded.said.keys.keys()


BY_ARCH = """
import triton
import triton.language as tl
from stand_in import stand_in, target_of
import sys

if __name__ == "__main__":
    stand_in(target_of(sys.argv[1]))
IS_NEW = triton.runtime.driver.active.get_current_target().arch >= 90
TYPE = tl.float16 if IS_NEW else tl.float32


@triton.jit
def cast(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets).to(TYPE).to(tl.float32))


def main():
    from corpus.arguments import F32

    said = cast[(1,)](F32, BLOCK=64).asm["ttir"]
    print('{"triton": "", "cases": {}}' if "f16" in said else '{"triton": "f32", "cases": {}}')


if __name__ == "__main__":
    main()
"""


def test_a_global_that_the_architecture_decides_is_not_carried_to_another(root, tmp_path):
    """Of it the key says nothing: a kernel with an H100's value would be the A100's from then on."""
    support = copy_program(tmp_path / "program")
    (support / "run_corpus.py").write_text(BY_ARCH)
    recorded = record_corpus(tmp_path / "recorded", "sm_90", support=support)
    (outcome,) = warm_corpus(root, recorded.recipes, "--arch", "sm_80", support=support)
    assert outcome["end"] == "differs here"
    assert "TYPE may have another value there" in outcome["why"]
    assert launch_corpus(root, "sm_80", support=support).triton == "f32"
