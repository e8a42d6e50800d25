"""`GPUCACHE_JIT_MAX_SIZE`: asked for, other JIT caches are bounded together; unasked, nobody looks at them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
from support.jit_trees import HOUR, unit, wrote
from support.writers import put_kernel

from gpucache.disk.lock_place import LockPlace
from gpucache.store import limit, over_limit
from gpucache.store.limit import Limit
from gpucache.triton import manager


def keeping(root: Path, jit_bytes: int) -> Limit:
    (root / "gpucache/v1/stats").mkdir(parents=True, exist_ok=True)
    return Limit(str(root), LockPlace(str(root)), 0, jit_bytes=jit_bytes)


@pytest.fixture
def old(root: Path) -> list[Path]:
    """Five units of 1,000 bytes of five caches, the oldest first."""
    caches = ("warp", "numba", "tvm-ffi", "torch-extensions", "jax")
    return [unit(root, cache, age_s=(9 - n) * HOUR) for n, cache in enumerate(caches)]


def there(paths: list[Path]) -> list[bool]:
    """Which units are there; of tvm-ffi's an empty directory stays."""
    found = []
    for path in paths:
        found.append(path.is_file() or (path.is_dir() and any(path.iterdir())))
    return found


def test_the_least_recently_used_of_all_caches_go_down_to_nine_tenths(root, old):
    keeping(root, 4000).turn()
    assert there(old) == [False, False, True, True, True]


def test_within_the_limit_nothing_goes(root, old):
    keeping(root, 5000).turn()
    assert all(there(old))


def test_what_was_used_in_the_grace_or_is_being_built_stays(root, old):
    os.utime(next(old[0].iterdir()))
    lock = old[2] / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        keeping(root, 1).turn()
    assert there(old) == [True, False, True, False, False]


def test_a_root_is_looked_at_once_an_hour_whichever_process_comes(root, old):
    mark = root / "gpucache/v1/stats/jit"
    keeping(root, 5000).turn()
    keeping(root, 1).turn()
    assert all(there(old))
    os.utime(mark, (time.time() - 3700,) * 2)
    keeping(root, 1).turn()
    assert not any(there(old))


def test_what_a_short_turn_leaves_the_next_one_takes(root, old, monkeypatch):
    monkeypatch.setattr(over_limit, "_TURN_S", -1.0)
    keeping(root, 1).turn()
    assert all(there(old))
    monkeypatch.undo()
    keeping(root, 1).turn()
    assert not any(there(old))


def test_what_killed_writers_left_is_swept_after_an_hour(root, old):
    dead = wrote(root / "jit/warp/1.19.0/wp_a_0123456_p1_t2/a.cpp", 9, 2 * HOUR)
    alive = wrote(root / "jit/warp/1.19.0/wp_a_0123456_p3_t4/a.cpp", 9, HOUR / 2)
    keeping(root, 9000).turn()
    assert (dead.exists(), alive.exists()) == (False, True)


def test_what_is_dear_what_bounds_itself_and_what_is_no_cache_neither_counts_nor_goes(root, old):
    dear = wrote(root / "jit/helion/abc.best_config", 9000, 99 * HOUR)
    driver = wrote(root / "jit/cuda/ab/cd", 9000, 99 * HOUR)
    users = wrote(root / "jit/notes", 9000, 99 * HOUR)
    keeping(root, 5000).turn()
    assert all(there([*old, dear, driver, users]))


def test_a_kernel_that_is_put_calls_for_the_look(root, old, monkeypatch):
    monkeypatch.setattr(limit, "_OTHERS_S", 0.0)
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/0")
    monkeypatch.setenv("GPUCACHE_MAX_SIZE", "0")
    put_kernel("A" * 52)
    assert all(there(old)), "unasked"
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_JIT_MAX_SIZE", "1")
    put_kernel("B" * 52)
    kept = manager.current_location().limit
    if kept._thread is not None:
        kept._thread.join(60)
    assert not any(there(old))
