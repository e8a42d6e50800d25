"""What a manager object has staged goes with the object, or at exit, whatever other threads do at that moment."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

from gpucache.triton import DeviceCacheManager

KEY = "A" * 52


@pytest.fixture
def cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root in which this process caches."""
    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/0")
    return root


def compiling(key: str = KEY) -> DeviceCacheManager:
    manager = DeviceCacheManager(key)
    assert manager.get_group("add.json") is None
    manager.put(b"{}", "add.json")
    return manager


def staged(root: Path) -> list[Path]:
    return list(root.glob("gpucache/v1/tmp/gpucache-*/*"))


def test_it_goes_with_the_object_and_the_lock_too(cached):
    manager = compiling()
    assert len(staged(cached)) == 1
    assert list(cached.glob("gpucache/v1/locks/*.lock"))
    del manager
    gc.collect()
    assert staged(cached) == []
    assert not list(cached.glob("gpucache/v1/locks/*.lock"))


def test_the_list_that_python_walks_at_exit_is_left_alone(cached):
    """It raises, and finishes nothing, when a daemon thread adds to the list at that moment."""
    before = len(weakref.finalize._registry)  # type: ignore[attr-defined]
    manager = compiling()
    assert len(weakref.finalize._registry) == before  # type: ignore[attr-defined]
    del manager


EXIT = """
import sys, threading
from gpucache.triton import DeviceCacheManager

def compiling(key):
    manager = DeviceCacheManager(key)
    manager.get_group("add.json")
    manager.put(b"{}", "add.json")
    return manager

kept = [compiling(f"{number:A>52}") for number in range(300)]
started = threading.Event()

def for_ever():
    number = 1000
    while True:
        kept.append(compiling(f"{number:B>52}"))
        number += 1
        started.set()

threading.Thread(target=for_ever, daemon=True).start()
assert started.wait(60)
sys.setswitchinterval(1e-6)
"""


def test_a_daemon_thread_that_compiles_at_exit_breaks_nothing(root, python):
    environ = {**os.environ, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}
    done = python(EXIT, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(root.glob("gpucache/v1/locks/*A*.lock")), "those of the main thread are free"


NO_STAGING = """
import os, sys
from gpucache.disk.staging import Staging
from gpucache.triton import DeviceCacheManager

def refuse(*_):
    raise OSError(28, "No space left on device")

Staging.write = refuse
manager = DeviceCacheManager("A" * 52)
manager.get_group("add.json")
path = manager.put(b"{}", "add.json")
if os.fork() == 0:
    sys.exit()  # as a worker that ends before its parent
assert os.wait()[1] == 0
print(path, open(path).read())
"""


def test_what_no_staging_takes_is_where_triton_can_read_it_and_goes_at_exit(root, python):
    environ = {**os.environ, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": f"{root}/triton/0"}
    done = python(NO_STAGING, env=environ)
    path, content = done.stdout.split()
    assert (done.returncode, content) == (0, "{}"), done.stderr
    assert not Path(path).parent.exists()
