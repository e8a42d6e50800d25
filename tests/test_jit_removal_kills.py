"""A removal of units of other JIT caches that is killed before each call by which it changes the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.jit_trees import DAY, UNITS, all_files, unit

from gpucache.layout.jit_caches import JIT_CACHES
from gpucache.upkeep.jit_prune import UnitPolicy

CACHES = ("tvm-ffi", "tilelang", "torch-extensions", "numba", "warp", "jax")
"""A lock by existence, directories, a lock's file, and units of several files, which go one by one."""
REMOVE = (
    SCRIPT
    + """
from gpucache.layout.jit_caches import by_name
from gpucache.upkeep.jit_prune import UnitPolicy
planned = UnitPolicy(caches=(by_name(sys.argv[2]),)).planned(sys.argv[1] + "/root")
mark("begin")
planned.execute()
mark("end")
"""
)

pytestmark = pytest.mark.kills


@pytest.mark.parametrize("cache", CACHES)
def test_a_killed_removal_leaves_nothing_that_the_next_one_does_not_remove(cache, every_call):
    """What the software would still find of a unit is all of the unit, or what leads to nothing."""

    def start(home: Path) -> list[object]:
        unit(home / "root", cache, age_s=30 * DAY)
        return [cache]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        ((name, files),) = UNITS[cache].items()
        where = root / "jit" / cache / name
        if where.is_dir():
            found = {str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()}
            leads_to_the_others = next(iter(files))
            assert found == set(files) or leads_to_the_others not in found, line
        row = next(row for row in JIT_CACHES if row.name == cache)
        UnitPolicy(caches=(row,)).planned(str(root)).execute()
        assert all_files(root) == [], line

    every_call.killed_everywhere(REMOVE, start, check, least=2)
