"""Nothing of ours leaves a launch: whatever call of a launch fails, with whatever exception, Triton gets its kernel."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.launches import another_process, kernel, launched
from support.trees import KERNEL, left_by_stock

import gpucache
from gpucache.triton import manager as plugin
from gpucache.triton.manager import DeviceCacheManager, current_location

KEY, FILES = kernel("first")
LEFT, _ = kernel("left by stock")
LIBRARY = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
TUNED = "add.autotune.json"
OURS = os.path.dirname(gpucache.__file__)

FAILURES: list[Callable[[], Exception]] = [
    lambda: OSError(errno.EIO, "Input/output error", "/somewhere"),
    lambda: ValueError("embedded null byte"),
    lambda: OverflowError("Python int too large to convert to C long"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    MemoryError,
]

# What stands in the net itself, and what Python calls without anybody above.
_NET = {
    *("__new__", "__init__", "get_group", "put_group", "get_file", "has_file", "put"),
    *("_finish", "_failed", "_put_is_over", "_stage", "_settled_at_all", "current_location"),
    *("degraded", "warn_once", "tell", "nowhere"),
}


class FailingCall:
    """Raises an exception at the call of this number of a function of gpucache's, counted from 1."""

    def __init__(self, number: int, failure: Callable[[], Exception]) -> None:
        self.number, self.failure, self.seen = number, failure, 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # One is also called to be closed, where nobody can catch anything.
        if code.co_name == "<genexpr>":
            return
        if event != "call" or not code.co_filename.startswith(OURS) or self._is_net(frame):
            return
        self.seen += 1
        if self.seen == self.number:
            self.where = f"{code.co_filename}:{code.co_name}"
            raise self.failure()

    def _is_net(self, frame: FrameType | None) -> bool:
        """Whether the call is one of the net's, or is made while the net tells of a failure."""
        assert frame is not None
        if frame.f_code.co_name in _NET:
            return True
        while frame is not None:
            if frame.f_code.co_name in ("_failed", "degraded", "_put_is_over", "nowhere"):
                return True
            frame = frame.f_back
        return False


def a_compile(_: Path) -> None:
    assert launched(KEY, FILES)[1] == FILES


def a_hit(root: Path) -> None:
    a_compile(root)


def a_view_of_the_store(root: Path) -> None:
    shutil.rmtree(root / "triton", ignore_errors=True)
    a_compile(root)


def an_adoption(_: Path) -> None:
    assert launched(LEFT, KERNEL)[1] == KERNEL


def a_library(_: Path) -> None:
    manager = DeviceCacheManager(KEY)
    path = manager.get_file(LIBRARY) or manager.put(b"library", LIBRARY)
    assert Path(path).read_bytes() == b"library"


def a_tuning(_: Path) -> None:
    manager = DeviceCacheManager(KEY)
    said = json.dumps({"key": [1], "configs_timings": []})
    path = manager.get_file(TUNED) or manager.put(said, TUNED, binary=False)
    assert Path(path).read_text() == said


BEFORE: dict[Callable[[Path], None], Callable[[Path], object]] = {
    a_compile: lambda root: None,
    a_hit: a_compile,
    a_view_of_the_store: a_compile,
    an_adoption: lambda root: left_by_stock(root / "triton/0", LEFT),
    a_library: lambda root: None,
    a_tuning: lambda root: None,
}


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What nobody could catch: an exception of a finalizer."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


def test_no_call_that_fails_while_the_place_is_settled_leaves_a_launch(root, monkeypatch):
    number, reached = 0, True
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    while reached:
        number += 1
        another_process(monkeypatch)
        failing = FailingCall(number, FAILURES[number % len(FAILURES)])
        sys.setprofile(failing)
        try:
            current_location()
        except Exception as error:
            sys.setprofile(None)
            pytest.fail(f"{error!r} at call {number}, {failing.where}")
        finally:
            sys.setprofile(None)
        assert launched(KEY, FILES)[1] == FILES, failing.where
        reached = failing.seen == number
    assert number > 100


@pytest.mark.kills  # it takes as long as those that kill
@pytest.mark.parametrize("act", BEFORE, ids=lambda act: act.__name__)
def test_no_call_that_fails_leaves_a_launch(act, tmp_path, monkeypatch, unraisable):
    number, reached = 0, True
    while reached:
        number += 3  # a third of the calls, so that it takes seconds
        root = tmp_path / str(number)
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
        another_process(monkeypatch)
        BEFORE[act](root)
        another_process(monkeypatch)
        current_location()
        failure = FAILURES[number // 3 % len(FAILURES)]
        failing = FailingCall(number, failure)
        sys.setprofile(failing)
        try:
            act(root)
        except Exception as error:
            sys.setprofile(None)
            pytest.fail(f"{error!r} at call {number}, {failing.where}")
        finally:
            sys.setprofile(None)
        assert not unraisable, failing.where
        reached = failing.seen == number
        another_process(monkeypatch)
        act(root)
        shutil.rmtree(root, ignore_errors=True)  # a thread may be counting there
    assert number > 20


# ---- settings and names that make no sense


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_TRUST_UIDS", "9" * 5000),
        ("GPUCACHE_TRUST_UIDS", "-1,\udcff"),
        ("GPUCACHE_MAX_SIZE", "9" * 5000),
        ("GPUCACHE_STAMP_S", "1" + "0" * 400),
        ("GPUCACHE_STALL_TIMEOUT_S", "nan"),
        ("GPUCACHE_LOCK_TIMEOUT_S", "9" * 5000),
        ("GPUCACHE_DEVICE", "\udcff\x1b[31m"),
        ("GPUCACHE_LOG", "9" * 5000),
        ("GPUCACHE_SHARE", "\udcff"),
        ("GPUCACHE_DISABLE", "maybe"),
        ("TRITON_ALWAYS_COMPILE", "\udcff"),
        ("TRITON_HOME", "\udcff" * 300),
        ("GPUCACHE_DIR", "x" * 5000),
        ("GPUCACHE_DIR", "/dev/null/below"),
        ("TRITON_CACHE_DIR", "y" * 5000),
        ("TRITON_CACHE_DIR", "/proc/self/nowhere"),
    ],
)
def test_no_setting_leaves_a_launch(name, value, root, monkeypatch):
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.setenv(name, value)
    another_process(monkeypatch)
    assert launched(KEY, FILES)[1] == FILES
    a_library(root)


def test_a_root_whose_name_is_no_text_is_one_like_any(root, monkeypatch):
    odd = os.fsdecode(bytes(root) + b"-\xff")
    monkeypatch.setenv("GPUCACHE_DIR", odd)
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{odd}/triton/0")
    another_process(monkeypatch)
    assert launched(KEY, FILES) == (False, FILES)
    another_process(monkeypatch)
    assert launched(KEY, FILES) == (True, FILES)
    a_library(root)
    a_tuning(root)


def test_where_nothing_can_be_found_out_the_process_compiles_alone(root, monkeypatch, caplog):
    def broken(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    another_process(monkeypatch)
    monkeypatch.setattr(plugin, "locate", broken)
    assert launched(KEY, FILES) == (False, FILES)
    assert launched(KEY, FILES) == (False, FILES)
    a_library(root)
    assert "the cache cannot be found" in caplog.text
