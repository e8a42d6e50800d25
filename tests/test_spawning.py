from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
from support.processes import PATIENCE_S, python_path

from gpucache.disk import spawning
from gpucache.disk.spawning import python_command, reap, start_beside, start_detached

TELLS = """
import json, os, sys
def main():
    fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
    more = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
    said = {"parent": os.getppid(), "group": os.getsid(0), "fds": fds, "more": more}
    said.update({"path": sys.path, "words": sys.argv[1:]})
    with open(sys.argv[1] + ".new", "w") as file:
        json.dump(said, file)
    os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


@pytest.fixture
def tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment in which a module `tells` is found, whose ``main`` writes what its process has."""
    (tmp_path / "tells.py").write_text(TELLS)
    return {**os.environ, "PYTHONPATH": python_path(tmp_path)}


def read(path: Path) -> dict:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    return json.loads(path.read_text())


class TestBesideAProgram:
    def test_it_is_nobodys_child_in_a_session_of_its_own(self, tells, tmp_path):
        start_beside("tells", [str(tmp_path / "out"), "more"], tells)
        said = read(tmp_path / "out")
        assert said["parent"] != os.getpid()
        assert said["group"] != os.getsid(0)
        assert said["words"][1:] == ["more"]

    def test_it_has_nothing_of_the_programs(self, tells, tmp_path):
        """A pipe that is kept open would let whoever reads the program's output wait."""
        readable, writable = os.pipe()
        os.set_inheritable(writable, True)
        try:
            start_beside("tells", [str(tmp_path / "out")], tells)
            said = read(tmp_path / "out")
        finally:
            os.close(readable)
            os.close(writable)
        assert said["fds"] == ["/dev/null"] * 3
        assert said["more"] == []

    def test_the_current_directory_is_not_looked_into(self, tells, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        start_beside("tells", [str(tmp_path / "out")], tells)
        assert "" not in read(tmp_path / "out")["path"]

    def test_the_program_keeps_no_child(self, tells, tmp_path):
        start_beside("tells", [str(tmp_path / "one")], tells)
        read(tmp_path / "one")
        spawning._started[0].wait(PATIENCE_S)
        start_beside("tells", [str(tmp_path / "two")], tells)
        read(tmp_path / "two")
        assert len(spawning._started) == 1
        spawning._started[0].wait(PATIENCE_S)

    def test_no_warning_comes_where_the_program_ends_at_once(self, python, tells, tmp_path):
        """Python warns of a child that has not ended, and ``-W error`` shows that as an exception."""
        code = "import os, sys; from gpucache.disk.spawning import start_beside\n"
        code += "start_beside('tells', [sys.argv[1]], dict(os.environ))"
        done = python(code, tmp_path / "out", env={**tells, "PYTHONWARNINGS": "error"})
        assert (done.returncode, done.stderr) == (0, "")
        read(tmp_path / "out")

    @pytest.mark.parametrize(("name", "value"), [("executable", ""), ("frozen", True)])
    def test_without_a_python_to_execute_it_is_refused(self, tells, monkeypatch, name, value):
        """A program that was frozen into one file would start itself."""
        monkeypatch.setattr(sys, name, value, raising=False)
        with pytest.raises(FileNotFoundError):
            start_beside("tells", [], tells)

    def test_where_the_interpreter_ends_it_is_refused(self, tells, monkeypatch):
        def refuse(*_, **__):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr("subprocess.Popen", refuse)
        with pytest.raises(BlockingIOError, match="shutdown"):
            start_beside("tells", [], tells)


def test_a_python_that_finds_no_gpucache_takes_this_one(tmp_path):
    """A program may run in an environment of its own, with ours on the path of this process alone."""
    python, *words = python_command("gpucache.cli.main", "--version")
    environ = {**os.environ, "PYTHONPATH": str(Path(click.__file__).parents[1])}
    without_site = [python, "-S", *words]  # which would find an editable install
    done = subprocess.run(without_site, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("gpucache"), done.stderr


def test_a_descriptor_that_is_kept_is_all_that_the_new_process_has_of_its_starter(tells, tmp_path):
    readable, writable = os.pipe()
    try:
        command = python_command("tells", str(tmp_path / "out"))
        start_detached(command, tells, kept=writable)
        assert read(tmp_path / "out")["more"] == [writable]
    finally:
        os.close(readable)
        os.close(writable)


def test_where_no_process_can_be_made_it_is_refused(tells, monkeypatch):
    """The limit of the user's processes may let one of two be made."""
    forks = []
    fork = os.fork

    def once() -> int:
        if forks:
            raise BlockingIOError
        forks.append(1)
        return fork()

    monkeypatch.setattr(spawning.os, "fork", once)
    with pytest.raises(BlockingIOError):
        start_detached(python_command("tells"), tells)


SETTLED = """
import os, signal, sys
from gpucache.disk.spawning import settle_in
def main():
    settle_in()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    by_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(f'["{os.getcwd()}", {len(blocked)}, {int(by_default)}]')
    os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


def test_what_has_settled_in_can_be_ended_and_keeps_no_directory(tells, tmp_path, monkeypatch):
    (tmp_path / "settled.py").write_text(SETTLED)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        start_detached(python_command("settled", str(tmp_path / "out")), tells)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, before)
    assert read(tmp_path / "out") == ["/", 0, 1]


def test_who_waits_for_the_child_to_be_nobodys_has_no_zombie(tells, tmp_path):
    start_beside("tells", [str(tmp_path / "out")], tells)
    child = spawning._started[-1].pid
    reap(PATIENCE_S)
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    read(tmp_path / "out")


def test_without_proc_no_descriptor_stays_open_either(tells, tmp_path, monkeypatch):
    def none(path):
        raise FileNotFoundError(path)

    readable, writable = os.pipe()
    high = fcntl.fcntl(writable, fcntl.F_DUPFD, 500)
    os.set_inheritable(high, True)
    monkeypatch.setattr(spawning.os, "listdir", none)
    try:
        start_detached(python_command("tells", str(tmp_path / "out")), tells)
        assert read(tmp_path / "out")["more"] == []
    finally:
        for fd in (readable, writable, high):
            os.close(fd)
