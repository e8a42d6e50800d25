"""Shards of the recipes are complete and disjoint, whoever reads what in which order."""

from __future__ import annotations

import hashlib

import pytest

from gpucache.errors import ConfigurationError
from gpucache.warm.pool.shard import WHOLE, Shard, parse_shard

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_each_recipe_is_in_exactly_one_shard(count: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    holders = [sum(shard.has(key) for shard in shards) for key in KEYS]
    assert holders == [1] * len(KEYS)


def test_shards_are_nearly_even() -> None:
    """A bad digest of the key would put all of a program's kernels into one shard."""
    sizes = [sum(Shard(number, 8).has(key) for key in KEYS) for number in range(1, 9)]
    assert min(sizes) > 12
    assert max(sizes) < 40


def test_a_recipe_keeps_its_shard_between_versions() -> None:
    """Machines with other versions of Python or of gpucache may run shards of one job."""
    first_of_five = [key for key in "abcdef" if Shard(1, 5).has(key)]
    assert first_of_five == ["c"]


def test_the_one_shard_of_one_has_all() -> None:
    assert all(WHOLE.has(key) for key in KEYS)


@pytest.mark.parametrize("text", ["1/1", "3/8", "8/8", "100000/100000"])
def test_a_shard_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_shard(text)) == text


@pytest.mark.parametrize("text", ["", "3", "/8", "3/", "0/8", "9/8", "-1/8", "1/0", "1/8/2", "٣/٨"])
def test_what_is_no_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a shard like 1/8, the first of eight"):
        parse_shard(text)
