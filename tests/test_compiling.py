from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.compiling import KEY, OTHER, compiling, lock_of, waiters
from support.processes import INTERPRETER, until

from gpucache.disk import lock_table
from gpucache.watch.compiling import compiles


def test_a_compile_is_told_with_its_kernel_device_process_and_time(root: Path) -> None:
    before = int(time.time())
    with compiling(root) as process:
        (one,) = compiles(str(root))
    assert (one.key, one.kernel, one.directory, one.pid) == (KEY, "matmul", "3", process.pid)
    assert before <= one.since <= time.time()
    assert one.waiting == 0


def test_those_who_wait_for_a_compile_are_counted(root: Path) -> None:
    with compiling(root), waiters(root, 3):
        until(lambda: [one.waiting for one in compiles(str(root))] == [3])


def test_a_lock_that_is_held_for_something_else_is_no_compile(root: Path) -> None:
    from gpucache.store.key_lock import holding

    with holding(str(lock_of(root)), "its removal") as held:
        assert held
        assert compiles(str(root)) == ()


def test_a_killed_compile_is_gone_as_soon_as_its_lock_has_not_been_touched(root: Path) -> None:
    path = lock_of(root)
    with compiling(root) as process:
        process.kill()
        process.wait()
        os.utime(path, (time.time() - 6, time.time() - 6))
        assert compiles(str(root)) == ()


def test_a_stopped_compile_still_holds_its_lock_and_is_shown(root: Path) -> None:
    path = lock_of(root)
    with compiling(root) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        os.utime(path, (1, 1))
        assert [one.kernel for one in compiles(str(root))] == ["matmul"]


def test_who_waits_in_another_container_is_not_known(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of locks has nothing of other pid namespaces; that the lock is touched tells of the holder's life."""
    monkeypatch.setattr(lock_table, "_TABLE", str(tmp_path / "none"))
    with compiling(root):
        assert [one.waiting for one in compiles(str(root))] == [None]


def test_to_look_never_takes_a_lock(root: Path, tmp_path: Path, strace: str) -> None:
    """Who shares a lock for an instant tells another that it is held, and makes that one wait."""
    path = lock_of(root)
    path.write_text(
        json.dumps({"pid": 1, "since": "2020-01-01T00:00:00Z", "what": "k", "device": "0"})
    )
    code = f"from gpucache.watch.compiling import compiles; print(compiles({str(root)!r}))"
    trace = tmp_path / "trace"
    traced = [strace, "-f", "-e", "trace=flock,openat", "-o", trace, INTERPRETER, "-c", code]
    subprocess.run(traced, check=True)
    assert path.name in trace.read_text()
    assert "flock" not in trace.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"pid": "x", "since": "2020-01-01T00:00:00Z", "what": "k", "device": "0"}',
        b'{"pid": 1e999, "since": "2020-01-01T00:00:00Z", "what": "k", "device": "0"}',
        b'{"pid": 1, "since": 7, "what": "k", "device": "0"}',
        b'{"pid": 1, "since": "2020-01-01T00:00:00Z", "what": 7, "device": "0"}',
        b'{"pid": 1, "since": "2020-01-01T00:00:00Z", "what": "k", "device": []}',
    ],
)
def test_a_lock_file_that_makes_no_sense_is_passed_over(root: Path, content: bytes) -> None:
    lock_of(root, OTHER).write_bytes(content)
    with compiling(root):
        assert [one.kernel for one in compiles(str(root))] == ["matmul"]


def test_what_is_no_file_in_the_place_of_a_lock_hangs_nobody(root: Path) -> None:
    os.mkfifo(lock_of(root))
    lock_of(root, OTHER).symlink_to("/dev/zero")
    assert compiles(str(root)) == ()


def test_those_that_began_first_come_first(root: Path) -> None:
    old = lock_of(root, OTHER)
    with (
        compiling(root, "new", "0"),
        compiling(root, "old", "1", OTHER),
    ):
        said = json.loads(old.read_text())
        said["since"] = "2020-01-01T00:00:00Z"
        old.write_text(json.dumps(said))
        assert [one.kernel for one in compiles(str(root))] == ["old", "new"]


def test_a_root_in_which_nobody_compiled_has_none(root: Path) -> None:
    assert compiles(str(root)) == ()
