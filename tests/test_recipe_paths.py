from __future__ import annotations

import doctest
import json

import pytest
from support.recipes import recipe

from gpucache.kernels import recipe_paths
from gpucache.kernels.recipe import Function, Global, encode, from_text, to_text
from gpucache.kernels.recipe_paths import carried, relative_file, without_absolute_paths

HERE = "/home/ada/work/kernels/add.py"
ENCODED = {"function": ["kernels.add", "f", HERE, "0" * 64]}
FULL = recipe(
    function=Function("kernels.add", "add", HERE, "0" * 64),
    constants=(((0,), ENCODED), ((1,), {"tuple": [1, {"constexpr": ENCODED}]})),
    options={"num_warps": 8, "hook": {"list": [ENCODED]}},
    signature={"function": "*fp32", "x": {"tuple": ["i32", ENCODED]}},
    globals=(Global("kernels.add", "helper", ENCODED), Global("", "t", {"unencoded": "a.B"})),
)


def test_the_examples():
    assert doctest.testmod(recipe_paths).failed == 0


def test_a_recipe_names_no_absolute_path_once_it_is_carried():
    """Whether its function's, or that of a function among the constants, options, types and values."""
    text = carried(to_text(FULL))
    assert b"/home" not in text
    assert text.count(b"kernels/add.py") == 1 + 2 + 1 + 1 + 1


def test_a_carried_recipe_says_else_what_it_said():
    text = to_text(FULL).decode().replace(HERE, "kernels/add.py")
    assert carried(to_text(FULL)).decode() == text
    assert from_text(text.encode()) == without_absolute_paths(FULL)


def test_a_recipe_that_is_carried_twice_is_as_it_was_the_first_time():
    once = carried(to_text(FULL))
    assert carried(once) == once


def test_a_parameter_named_like_a_kind_of_value_stays():
    assert without_absolute_paths(FULL).signature["function"] == "*fp32"


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 9999, json.dumps({"key": "A" * 52}).encode()])
def test_what_is_no_recipe_is_not_carried(text):
    assert carried(text) is None


@pytest.mark.parametrize(
    ("module", "file", "said"),
    [
        ("a.b", "/x/other/b.py", "b.py"),
        ("a.b", "/x/a/b/__init__.py", "a/b/__init__.py"),
        ("b", "/x/ab.py", "ab.py"),
        ("b", "b.py", "b.py"),
        ("b", "/", None),
        ("my-kernels", "/x/my-kernels.py", "my-kernels.py"),
        ("a", None, None),
    ],
)
def test_a_file_is_relative_to_where_its_modules_name_begins(module, file, said):
    assert relative_file(module, file) == said


def test_a_users_texts_are_left_alone():
    """The kernel is made of them."""
    kept = recipe(constants=(((0,), encode("/home/ada/x.py")),), source="# /home/ada/x.py\n")
    assert without_absolute_paths(kept).constants == kept.constants
    assert without_absolute_paths(kept).source == kept.source
