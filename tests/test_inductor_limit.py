"""`GPUCACHE_INDUCTOR_MAX_SIZE`: asked for, TorchInductor's files are bounded; unasked, nobody looks at them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.inductor import HOUR, autograd, graph, library
from support.writers import put_kernel

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.within import Straight
from gpucache.store import inductor_limit, limit, over_limit
from gpucache.store.inductor_units import find
from gpucache.store.limit import Limit
from gpucache.triton import manager


def keeping(root: Path, inductor_bytes: int) -> Limit:
    (root / "gpucache/v1/stats").mkdir(parents=True, exist_ok=True)
    return Limit(str(root), LockPlace(str(root)), 0, inductor_bytes=inductor_bytes)


@pytest.fixture
def old(root: Path) -> list[Path]:
    """Five units of 1,000 bytes, the oldest first."""
    made = [library(root, "one", 9 * HOUR)[0]]
    made += [graph(root, str(number), number * HOUR) for number in (8, 7)]
    made += [autograd(root, str(number), number * HOUR) for number in (6, 5)]
    return made


def there(paths: list[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def test_the_least_recently_used_go_down_to_nine_tenths(root, old):
    keeping(root, 4000).turn()
    assert there(old) == [False, False, True, True, True]


def test_within_the_limit_nothing_goes(root, old):
    keeping(root, 5000).turn()
    assert all(there(old))


def test_what_was_used_in_the_grace_stays(root, old):
    os.utime(old[0])
    keeping(root, 1).turn()
    assert there(old) == [True, False, False, False, False]


def test_a_root_is_looked_at_once_an_hour_whichever_process_comes(root, old, monkeypatch):
    mark = root / "gpucache/v1/stats/inductor"
    keeping(root, 5000).turn()
    keeping(root, 1).turn()
    assert all(there(old))
    os.utime(mark, (time.time() - 3700,) * 2)
    keeping(root, 1).turn()
    assert not any(there(old))
    again = graph(root, "again", HOUR)
    os.utime(mark, (time.time() + 9 * 3700,) * 2)
    keeping(root, 1).turn()
    assert not again.exists(), "a wrong clock"


def test_what_a_short_turn_leaves_the_next_one_takes(root, old, monkeypatch):
    monkeypatch.setattr(over_limit, "_TURN_S", -1.0)
    keeping(root, 1).turn()
    assert all(there(old))
    monkeypatch.undo()
    keeping(root, 1).turn()
    assert not any(there(old))


def test_a_unit_that_is_used_at_that_moment_stays_and_the_others_go(root, old, monkeypatch):
    real = inductor_limit.remove_unit

    def touched_first(unit, disk: Straight):
        if unit.path == str(old[1]):
            os.utime(old[1])
        return real(unit, disk)

    monkeypatch.setattr(inductor_limit, "remove_unit", touched_first)
    keeping(root, 1).turn()
    assert there(old) == [False, True, False, False, False]


def test_a_kernel_that_is_put_calls_for_the_look(root, old, monkeypatch):
    monkeypatch.setattr(limit, "_OTHERS_S", 0.0)
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/0")
    monkeypatch.setenv("GPUCACHE_MAX_SIZE", "0")
    put_kernel("A" * 52)
    assert all(there(old)), "unasked"
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_INDUCTOR_MAX_SIZE", "1")
    put_kernel("B" * 52)
    kept = manager.current_location().limit
    if kept._thread is not None:
        kept._thread.join(60)
    assert not any(there(old))
    assert find(str(root)).units == ()


@pytest.mark.parametrize("planted", ["fifo", "link", "directory"])
def test_whatever_is_in_place_of_the_mark_hangs_and_follows_nothing(root, old, planted, tmp_path):
    kept = keeping(root, 1)
    mark = root / "gpucache/v1/stats/inductor"
    outside = tmp_path / "outside"
    outside.write_text("mine")
    os.utime(outside, (1e9, 1e9))
    if planted == "fifo":
        os.mkfifo(mark)
    elif planted == "link":
        mark.symlink_to(outside)
    else:
        mark.mkdir()
    os.utime(mark, (1e9, 1e9), follow_symlinks=False)
    kept.turn()
    assert not any(there(old))
    assert outside.stat().st_mtime == 1e9
