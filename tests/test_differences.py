"""In what the ingredients of two kernels differ, which of several is nearest, and the words for that."""

from __future__ import annotations

from typing import Any

import pytest

from gpucache.kernels.differences import Difference, differences, distance, nearest, words
from gpucache.kernels.encoding import Function
from gpucache.kernels.ingredients import Ingredients
from gpucache.kernels.metadata import Metadata
from gpucache.kernels.recipe import Global, Recipe, Target

KEY = "A" * 52
DIGEST = "a" * 64
HELPER = {"function": ["tune", "gelu", "/tune.py", "b" * 64]}


def made(
    line: int | None = 8,
    cache_key: str = DIGEST,
    recipe: bool = True,
    version: str = "3.9.0",
    file: str = "/work/tune.py",
    target: str = "cuda:90",
    **how: Any,
) -> Ingredients:
    """A matmul; ``how`` names constants, types, specialized, options, variables, globals."""
    options = {"num_warps": 4, "num_stages": 4, "arch": target, **how.get("options", {})}
    metadata = Metadata(
        name="matmul",
        target=target,
        arch=target.replace("cuda:", "sm_"),
        triton_version=version,
        hash=None,
        options=options,
        environment=how.get("variables", {}),
        results={},
    )
    types = {"x": "*fp16", "n": "i32", "BLOCK_K": "constexpr", "ACT": "constexpr"}
    said = Recipe(
        key=KEY,
        triton_version=version,
        kernel="matmul",
        function=Function("tune", "matmul", file, cache_key),
        target=Target("cuda", int(target[5:]), 32),
        signature={**types, **how.get("types", {})},
        constants=how.get("constants", (((2,), 32), ((3,), HELPER))),
        specialized=how.get("specialized", (((0,), (("tt.divisibility", 16),)), ((1,), ()))),
        options={},
        variables={},
        globals=how.get("globals", (Global("tune", "STEP", {"constexpr": 1}),)),
    )
    return Ingredients(metadata, said if recipe else None, file, line)


OTHER = "c" * 64
CASES = {
    "BLOCK_K 32 -> 64": made(constants=(((2,), 64), ((3,), HELPER))),
    "num_stages 4 -> 3": made(options={"num_stages": 3}),
    "Triton 3.9.0 -> 3.8.0": made(version="3.8.0", cache_key=OTHER),
    "cuda:90 -> cuda:80": made(target="cuda:80"),
    "TRITON_DEFAULT_FP_FUSION unset -> true": made(variables={"TRITON_DEFAULT_FP_FUSION": "true"}),
    "x *fp16, divisible by 16 -> *fp16": made(specialized=(((0,), ()), ((1,), ()))),
    "x *fp16, divisible by 16 -> *bf16, divisible by 16": made(types={"x": "*bf16"}),
    "n i32 -> 1": made(types={"n": "constexpr"}, constants=(((1,), 1), ((2,), 32), ((3,), HELPER))),
    "STEP 1 -> 3": made(cache_key=OTHER, globals=(Global("tune", "STEP", {"constexpr": 3}),)),
    "source of matmul or a callee": made(cache_key=OTHER),
    "source of gelu or a callee": made(
        constants=(((2,), 32), ((3,), {"function": ["tune", "gelu", "/tune.py", OTHER]}))
    ),
    "tune.py:9 was line 8, source of matmul or a callee": made(9, OTHER),
}


@pytest.mark.parametrize("expected", CASES)
def test_each_thing_that_a_key_is_made_of_is_told_by_name(expected):
    found = differences(made(), CASES[expected])
    assert ", ".join(map(words, found)) == expected


def test_a_kernel_does_not_differ_from_itself():
    assert differences(made(), made()) == ()
    assert distance(()) == 0


def test_of_a_moved_function_the_source_is_told_to_be_another_only_where_it_is():
    moved = made(9, OTHER)
    (found,) = differences(made(), moved, lambda line: DIGEST if line == 8 else None)
    assert found == Difference("location", "line", "/work/tune.py:8", "/work/tune.py:9")
    kinds = [each.kind for each in differences(made(), moved, lambda line: OTHER)]
    assert kinds == ["location", "source"]


def test_until_triton_3_4_the_digest_itself_tells_a_moved_function():
    one, moved = made(8, f"{DIGEST}7", version="3.4.0"), made(9, f"{DIGEST}8", version="3.4.0")
    assert [each.kind for each in differences(one, moved)] == ["location"]


def test_globals_that_differ_are_told_in_the_order_of_the_recipe():
    names = [f"STEP_{number}" for number in range(12)]
    before = made(globals=tuple(Global("tune", name, {"constexpr": 1}) for name in names))
    after = made(
        cache_key=OTHER,
        globals=tuple(Global("tune", name, {"constexpr": 3}) for name in names),
    )
    assert [each.name for each in differences(before, after)] == names


def test_without_a_recipe_the_metadata_are_compared_alone():
    other = made(9, OTHER, recipe=False, options={"num_warps": 8})
    assert [words(each) for each in differences(made(), other)] == ["num_warps 4 -> 8"]


def test_the_nearest_is_that_with_the_least_difference_and_of_equals_the_first():
    source = made(cache_key=OTHER)
    two = made(constants=(((2,), 64), ((3,), HELPER)), options={"num_stages": 3})
    one = made(options={"num_stages": 3})
    assert nearest(made(), []) is None
    number, found = nearest(made(), [source, two, one, one]) or (None, ())
    assert number == 2
    assert [words(each) for each in found] == ["num_stages 3 -> 4"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("/a/tune.py:8", "/a/tune.py:9", "tune.py:9 was line 8"),
        ("/a/tune.py:8", "/a/other.py:9", "other.py:9 was tune.py:8"),
        ("/a/tune.py:8", "/b/tune.py:9", "/b/tune.py:9 was /a/tune.py:8"),
    ],
)
def test_a_line_is_told_with_as_much_of_its_file_as_tells_it_apart(before, after, expected):
    assert words(Difference("location", "line", before, after)) == expected
