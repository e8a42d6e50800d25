"""Kernels of every kind that programs have (the package `corpus`), through the plug-in: compiled once, then hit.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

import pytest
from support.corpus_runs import launch_corpus

pytestmark = pytest.mark.usefixtures("triton")


def unsteady(triton: str) -> set[str]:
    """What has another key in each process: Triton 3.4 hashes the text of a function, with its address."""
    return {"a constexpr function as constant"} if triton.startswith("3.4.") else set()


def test_each_kind_of_kernel_is_compiled_once_and_hit_by_the_next_program(root):
    first = launch_corpus(root, "sm_90")
    assert not first.failed
    assert len(first.compiled) == len(first.keys) >= 70
    again = launch_corpus(root, "sm_90")
    assert set(again.compiled.values()) == unsteady(first.triton)
