from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import KEY_HOLDER, PATIENCE_S, running

from gpucache.disk import lock_table
from gpucache.disk.lock_table import Held, held_by, held_locks

WAITER = """
import fcntl, sys
with open(sys.argv[1]) as file:
    fcntl.flock(file, fcntl.LOCK_SH)
"""


def test_the_holder_of_a_lock_and_all_who_wait_are_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "KEY.lock"
    with running(KEY_HOLDER, str(path)) as holder:
        waiters = [subprocess.Popen([sys.executable, "-c", WAITER, path]) for _ in range(3)]
        try:
            end = time.monotonic() + PATIENCE_S
            expected = Held(holder.pid, frozenset(waiter.pid for waiter in waiters))
            while held_by(path.stat(), holder.pid, held_locks()) != expected:
                assert time.monotonic() < end
        finally:
            for waiter in waiters:
                waiter.kill()
                waiter.wait()


def test_a_file_that_nobody_has_locked_is_not_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "KEY.lock"
    path.touch()
    assert held_by(path.stat(), os.getpid(), held_locks()) is None


def test_of_two_files_with_one_number_the_process_tells_which_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "KEY.lock"
    path.touch()
    number = path.stat().st_ino
    table = tmp_path / "locks"
    table.write_text(
        f"1: FLOCK  ADVISORY  WRITE 11 fe:00:{number} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 22 00:2f:{number} 0 EOF\n"
        f"2: -> FLOCK  ADVISORY  READ 33 00:2f:{number} 0 EOF\n"
        f"2:  -> FLOCK  ADVISORY  READ 33 00:2f:{number} 0 EOF\n"
        f"3: POSIX  ADVISORY  WRITE 44 00:2f:{number} 0 EOF\n"
        "4: LEASE  ACTIVE    READ  55 00:2f:7 0\n"
        "nonsense\n"
    )
    monkeypatch.setattr(lock_table, "_TABLE", str(table))
    found = held_locks()
    assert held_by(path.stat(), 11, found) == Held(11, frozenset())
    assert held_by(path.stat(), 22, found) == Held(22, frozenset({33}))
    assert held_by(path.stat(), 44, found) is None


def test_without_a_table_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_table, "_TABLE", str(tmp_path / "none"))
    assert held_locks() == {}
