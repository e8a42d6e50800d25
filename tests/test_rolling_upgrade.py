"""Processes of an earlier gpucache and of this one on one root, as while the nodes of a fleet are upgraded in turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.earlier import EARLIER, HERE, Version, extracted, together

from gpucache.store.stats import totals

COUNT = 3

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("triton")]


@pytest.fixture(params=EARLIER.values(), ids=[name.replace(" ", "-") for name in EARLIER])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Version:
    try:
        tree = extracted(request.param, tmp_path / "earlier")
    except LookupError as error:
        pytest.skip(f"needs history: {error}")
    return Version(tree, tmp_path / "root")


@pytest.fixture
def present(earlier: Version) -> Version:
    return Version(HERE, earlier.root)


def compiled(said: list[dict[str, int]]) -> int:
    return sum(one["compiled"] for one in said)


def findings(version: Version) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(version.says("verify", "--json"))["findings"]
    return found


def counted(root: Path) -> dict[str, float]:
    """The counters of all device directories, summed."""
    rows = totals(str(root)).values()
    return {
        name: sum(row.get(name, 0) for row in rows) for name in ("hits", "misses", "shared_hits")
    }


def test_of_both_at_once_each_kernel_is_compiled_once_and_nothing_is_lost(
    earlier: Version, present: Version
) -> None:
    """Afterwards both hit in every directory, both find all whole, and counters are those of all."""
    earlier.says("provision")
    assert compiled(together([earlier.rank(0, COUNT), present.rank(1, COUNT)])) == COUNT
    assert compiled(together([earlier.rank(2, COUNT), present.rank(3, COUNT)])) == 0
    assert findings(earlier) == findings(present) == []
    sums = counted(present.root)
    assert (sums["misses"], sums["shared_hits"]) == (COUNT, 3 * COUNT)


def test_what_this_one_removes_the_earlier_one_compiles_again(
    earlier: Version, present: Version
) -> None:
    present.says("provision")
    together([earlier.rank(0, COUNT)])
    present.says("clean", "--force", "--yes")
    assert compiled(together([earlier.rank(0, COUNT)])) == COUNT
    assert compiled(together([present.rank(1, COUNT)])) == 0
    assert findings(present) == []
