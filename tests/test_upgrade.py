"""A root that one Triton has filled, warmed by another: programs under that compile nothing, but for what is listed.

`GPUCACHE_TEST_TRITON` names the Python with the other Triton; without it both are the same, and few kernels are tried.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.corpus_runs import Launched, launch_corpus, warm_corpus
from support.ranks import PYTHON

pytestmark = pytest.mark.usefixtures("triton")
IS_ANOTHER = sys.executable != PYTHON
NAMES = (
    ()
    if IS_ANOTHER
    else (
        "a constant float",
        "num_warps and num_stages",
        "a tensor that may be None, a falsehood, a float that is 1",
    )
)

ALWAYS = {
    # No import makes them.
    "a kernel that a function makes",
    "a kernel made from a text",
    "a kernel whose text is changed as the program runs",
    # They have no recipe: of flags that are no member no other process can be told.
    "a constant of flags",
    # A digest tells which of two is meant, and the digests of 3.2, 3.4 and of later versions are not alike.
    "a kernel whose name another one took",
    # Name and digest of both are the same; their keys are not, but no key is alike in two versions.
    "a function that is decorated twice",
}
OF_3_4 = {
    # Its key has its address in it.
    "a constexpr function as constant",
}
OF_3_2 = {
    # It looks at no `debug` of a decorator, and gives it no option.
    "a kernel that is debugged by its decorator",
    # A `triton.Config` asks for two stages there, and for three later.
    "heuristics below an autotuner",
    "an autotuned kernel that a registry keeps",
    # A falsehood is a multiple of 16 there; later no recipe tells whether a truth was one.
    "a tensor that may be None, a falsehood, a float that is 1",
    "the largest integer of 32 bits, and zero",
}


class Warmed(NamedTuple):
    """What a program under one Triton asked for, how its recipes ended under another, and a program under that."""

    before: Launched
    outcomes: list[dict[str, str]]
    after: Launched

    @property
    def missed(self) -> set[str]:
        """The launches that compile though the program had them before."""
        return set(self.after.compiled.values()) & self.before.asked.keys()

    def ended(self, end: str) -> set[str]:
        """The launches whose recipes ended so."""
        keys = [one["recipe"] for one in self.outcomes if one["end"] == end]
        return {self.before.keys[key] for key in keys}


def warmed(root: Path, before: str, after: str) -> Warmed:
    root.mkdir(mode=0o700)
    first = launch_corpus(root, "sm_90", *NAMES, python=before)
    outcomes = warm_corpus(root, "--store", python=after)
    return Warmed(first, outcomes, launch_corpus(root, "sm_90", *NAMES, python=after))


def expected(said: Warmed) -> set[str]:
    """Which launches may compile."""
    found = set(ALWAYS)
    for version in (said.before.triton, said.after.triton):
        found |= OF_3_4 if version.startswith("3.4.") else set()
        found |= OF_3_2 if version.startswith("3.2.") else set()
    return found


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_a_program_compiles_nothing_that_the_other_triton_had_compiled(tmp_path, direction):
    pythons = (PYTHON, sys.executable)
    said = warmed(tmp_path / "root", *(pythons if direction == "upgrade" else pythons[::-1]))
    assert said.missed - expected(said) == set()
    hits = {one.key for asked in said.after.asked.values() for one in asked if one.hit}
    assert len(hits) >= (60 if IS_ANOTHER else 3)
    assert said.ended("not for this target") == said.ended("differs here") == set()
    # What one of the two cannot compile at all may end in any way.
    unmade = said.ended("cannot be imported") | said.ended("failed")
    assert unmade & said.after.asked.keys() - expected(said) == set()
