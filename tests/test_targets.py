"""Architectures by the names that people know."""

from __future__ import annotations

import pytest

from gpucache.errors import ConfigurationError
from gpucache.kernels.recipe import Target
from gpucache.warm.targets import parse_target, parse_targets


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("sm_90", Target("cuda", 90, 32)),
        ("sm_90a", Target("cuda", 90, 32)),
        (" SM100 ", Target("cuda", 100, 32)),
        ("80", Target("cuda", 80, 32)),
        ("gfx942", Target("hip", "gfx942", 64)),
        ("gfx90a", Target("hip", "gfx90a", 64)),
        ("gfx1100", Target("hip", "gfx1100", 32)),
    ],
)
def test_a_name_is_a_target(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "sm_", "9", "sm_9x", "gfx", "gfx9", "hopper", "sm_90;rm"])
def test_anything_else_is_an_error_that_names_it(text):
    with pytest.raises(ConfigurationError, match="an architecture like sm_90 or gfx942"):
        parse_target(text)


def test_a_list_has_each_target_once_and_in_order():
    found = parse_targets("sm_90, gfx942,,sm90")
    assert found == (Target("cuda", 90, 32), Target("hip", "gfx942", 64))
