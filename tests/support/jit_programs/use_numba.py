"""Numba compiles one function that it is to cache, and counts its hits."""

import json

import numba


@numba.njit(cache=True)
def add_in_a_test(a, b):
    return a + b


assert add_in_a_test(1, 2) == 3
print(json.dumps({"compiled": sum(add_in_a_test.stats.cache_misses.values())}))
