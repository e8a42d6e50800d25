from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpucache.disk import processes
from gpucache.disk.processes import is_running, pid_namespace, process_of, this_process


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_runs_until_it_ends_asked_for_or_not(child):
    known = process_of(child.pid)
    assert known is not None
    assert is_running(known)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still a zombie
    assert not is_running(known)
    child.wait()
    assert not is_running(known)


def test_a_number_that_is_used_again_is_another_process(child):
    pid, start = process_of(child.pid)
    assert not is_running((pid, start - 1))


def test_a_process_stays_the_same_when_it_becomes_another_program():
    code = "import os, sys; from gpucache.disk.processes import this_process; print(this_process(), flush=True); "
    code += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    ask = "from gpucache.disk.processes import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code, ask], capture_output=True, text=True)
    before, after = done.stdout.splitlines()
    assert before == after != "None"


def test_a_name_with_brackets_and_blanks_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    fields = " ".join(["S", *map(str, range(18)), "4711", *map(str, range(30))])
    (tmp_path / "7/stat").write_text(f"7 (a) S 1 ) {fields}\n")
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    assert process_of(7) == (7, 4711)
    assert process_of(8) is None
    assert pid_namespace() == 0


def test_this_process_has_a_namespace_and_a_start():
    assert this_process() == process_of(os.getpid())
    assert pid_namespace() > 0
