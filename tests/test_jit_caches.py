"""The table of JIT caches holds together: names, variables and patterns, and what words choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.jit_table import documented_tables

from gpucache.errors import ConfigurationError
from gpucache.layout import paths
from gpucache.layout.jit_caches import ALL, JIT_CACHES, SET_ANYWAY, by_name, chosen


def names(*words: str) -> list[str]:
    return [cache.name for cache in chosen(words, "--caches")]


class TestRows:
    def test_each_name_and_each_variable_has_one_row(self):
        found = [cache.name for cache in JIT_CACHES]
        variables = [name for cache in JIT_CACHES for name, _ in cache.variables]
        assert len(set(found)) == len(found)
        assert len(set(variables)) == len(variables)

    @pytest.mark.parametrize("cache", JIT_CACHES, ids=lambda cache: cache.name)
    def test_a_row_says_why_all_is_not_enough_and_only_then(self, cache):
        assert bool(cache.reason) == (cache.kind != "on")
        assert bool(cache.variables) == (cache.kind != "by-hand")

    @pytest.mark.parametrize("cache", JIT_CACHES, ids=lambda cache: cache.name)
    def test_a_row_says_why_a_cache_does_not_move_and_only_then(self, cache):
        assert bool(cache.moves_because) == (not cache.moves)

    @pytest.mark.parametrize("cache", JIT_CACHES, ids=lambda cache: cache.name)
    def test_patterns_are_relative_and_plain(self, cache):
        patterns = list(cache.staged)
        for unit in cache.units:
            assert "*" in unit.pattern
            patterns += [unit.pattern, *unit.companions]
        for pattern in patterns:
            parts = pattern.rstrip("/").split("/")
            assert ".." not in parts
            assert "" not in parts

    @pytest.mark.parametrize("cache", JIT_CACHES, ids=lambda cache: cache.name)
    def test_a_name_is_one_plain_part_of_a_path(self, cache):
        assert cache.name.replace("-", "").isalnum()
        assert paths.jit_directory("/r", cache.name) == f"/r/jit/{cache.name}"


class TestChosen:
    def test_all_is_every_row_that_is_on(self):
        assert names(ALL) == [cache.name for cache in JIT_CACHES if cache.kind == "on"]

    def test_a_row_that_all_leaves_out_is_had_by_its_name_beside_all(self):
        assert set(names(ALL, "jax")) - set(names(ALL)) == {"jax"}

    def test_the_order_is_the_tables_and_each_row_comes_once(self):
        assert names("warp", "tilelang", "warp") == ["tilelang", "warp"]

    @pytest.mark.parametrize("name", SET_ANYWAY)
    def test_what_run_sets_anyway_may_be_named(self, name):
        assert names(name) == []

    def test_an_unknown_name_is_refused_with_the_nearest_right_one(self):
        with pytest.raises(ConfigurationError, match="the nearest is flashinfer") as caught:
            names("flashinfr")
        assert caught.value.name == "--caches"
        with pytest.raises(ConfigurationError, match="is not a name that"):
            names("zzzz")
        with pytest.raises(ConfigurationError, match="the nearest is jax"):
            names("JAX")

    def test_a_row_is_found_by_its_name(self):
        assert by_name("warp").variable == "WARP_CACHE_PATH"
        with pytest.raises(KeyError):
            by_name("no-such")


def test_a_level_is_below_the_caches_directory():
    assert paths.jit_directory("/r") == "/r/jit"
    assert paths.jit_directory("/r", "aiter", "sm_90") == "/r/jit/aiter/sm_90"


def test_the_page_has_every_row_as_it_is():
    page = Path(__file__).parent.parent / "docs/jit-caches.md"
    assert page.read_text().endswith(f"\n\n{documented_tables()}")
