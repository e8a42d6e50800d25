"""A pool ahead of programs: who starts it, who shares it, and when it ends. Real processes; the pool only waits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from support.processes import PATIENCE_S
from support.recipes import recipe_file, stored

from gpucache.disk.processes import is_running, process_of, this_process
from gpucache.warm.ahead import ahead, detached_pool, programs
from gpucache.warm.ahead.ahead import Recipes, compile_ahead, default_jobs
from gpucache.warm.ahead.programs import Programs, opened, programs_path

GONE_S = 2.0
"""So long after the last program a pool and all that it started may live."""


def until(condition, seconds=PATIENCE_S):
    """Go on once the condition holds; what it then is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.01)
    return found


@pytest.fixture
def file(tmp_path, root) -> Path:
    (root / "gpucache/v1/locks").mkdir(parents=True, mode=0o700)
    recipe_file(tmp_path / "r.jsonl", 3)
    return tmp_path / "r.jsonl"


@pytest.fixture
def waiting_pool(monkeypatch):
    """In the place of the pool: the same process, which compiles for an hour."""
    monkeypatch.setattr(ahead, "installed_triton", lambda: "there is one")
    started = []
    start = ahead.start_detached

    def waiting(command, environ):
        code = "import sys, time; from gpucache.warm.ahead import detached_pool\n"
        code += "detached_pool._compile_all = lambda asked, started: time.sleep(3600)\n"
        code += "detached_pool.main(sys.argv[1:])"
        started.append(start([sys.executable, "-c", code, command[-1]], environ))
        return started[-1]

    monkeypatch.setattr(ahead, "start_detached", waiting)
    yield started
    for pid in started:
        if process_of(pid) is not None:
            os.kill(pid, signal.SIGKILL)


def asked(file: Path, root: Path, *targets: str) -> ahead.Ahead:
    environ = dict(os.environ)
    return compile_ahead(Recipes.of_file(str(file)), str(root), environ, targets=targets, jobs=1)


def program() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


@pytest.fixture
def registered(file, root, waiting_pool, monkeypatch):
    """Have other processes than this one ask, as `gpucache run` does before it becomes them."""
    made = []

    def ask(process, *targets, of=file, below=root):
        made.append(process)
        monkeypatch.setattr(ahead, "this_process", lambda: process_of(process.pid))
        return asked(of, below, *targets)

    yield ask
    for process in made:
        process.kill()
        process.wait()


def locks(root: Path) -> list[str]:
    return [path.name for path in (root / "gpucache/v1/locks").iterdir()]


class TestWhoStartsIt:
    def test_nothing_starts_where_nothing_is_missing(self, file, root, waiting_pool, monkeypatch):
        for key in recipe_file(file, 3):
            stored(root, key)
        os.utime(file, (4e9, 4e9))
        monkeypatch.setattr("gpucache.warm.ahead.missing.installed_triton", lambda: None)
        assert asked(file, root).did == "nothing missing"
        assert waiting_pool == []
        assert locks(root) == []

    def test_nor_where_this_python_has_no_triton(self, file, root, waiting_pool, monkeypatch):
        monkeypatch.setattr(ahead, "installed_triton", lambda: None)
        assert asked(file, root).did == "no triton"
        assert waiting_pool == []

    def test_a_second_program_is_served_by_the_pool_of_the_first(self, registered, waiting_pool):
        first, second = registered(program()), registered(program())
        assert (first.did, second.did) == ("started", "joined")
        assert second.pool == first.pool == waiting_pool[0]
        assert len(waiting_pool) == 1

    def test_two_files_two_roots_and_two_targets_are_apart(
        self, registered, waiting_pool, tmp_path, root
    ):
        other = tmp_path / "other"
        (other / "gpucache/v1/locks").mkdir(parents=True, mode=0o700)
        recipe_file(tmp_path / "r2.jsonl", 3)
        told = [registered(program())]
        told.append(registered(program(), of=tmp_path / "r2.jsonl"))
        told.append(registered(program(), below=other))
        told.append(registered(program(), "sm_100"))
        assert {one.did for one in told} == {"started"}
        assert len(set(waiting_pool)) == 4

    def test_another_pid_namespace_has_a_pool_of_its_own(self, root, file, monkeypatch):
        here = programs_path(str(root), ["a"])
        monkeypatch.setattr(programs, "pid_namespace", lambda: 7)
        assert programs_path(str(root), ["a"]) != here

    def test_one_that_was_killed_is_replaced(self, registered, waiting_pool, root):
        registered(program())
        os.kill(waiting_pool[0], signal.SIGKILL)
        until(lambda: process_of(waiting_pool[0]) is None)
        assert registered(program()).did == "started"
        assert len(waiting_pool) == 2
        assert len(locks(root)) == 1

    def test_of_many_that_ask_at_once_one_starts_it(self, file, root, waiting_pool, monkeypatch):
        patient = partial(opened, patience_s=PATIENCE_S)  # however slowly a busy machine starts it
        monkeypatch.setattr(ahead, "opened", patient)
        told = []
        threads = [
            threading.Thread(target=lambda: told.append(asked(file, root))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(one.did for one in told) == ["joined"] * 7 + ["started"]


def is_caught(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


class TestWhenItEnds:
    def test_with_the_last_program_and_leaves_no_file(self, registered, waiting_pool, root):
        first, second = program(), program()
        registered(first)
        registered(second)
        (pool,) = map(process_of, waiting_pool)
        first.kill()
        first.wait()
        assert not threading.Event().wait(0.5)
        assert is_running(pool), "the second program keeps its pool"
        second.kill()
        second.wait()
        until(lambda: not is_running(pool), GONE_S)
        assert locks(root) == []

    def test_also_with_one_that_its_parent_does_not_ask_for(self, registered, waiting_pool):
        """A zombie is no program any more."""
        one = program()
        registered(one)
        (pool,) = map(process_of, waiting_pool)
        one.kill()
        until(lambda: not is_running(pool), GONE_S)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_when_a_signal_asks_for_that_and_leaves_no_file(
        self, registered, waiting_pool, root, number
    ):
        """As ``scancel`` does, also where the launcher has blocked signals; the program goes on."""
        one = program()
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        try:
            registered(one)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        (pool,) = map(process_of, waiting_pool)
        until(lambda: is_caught(pool[0], number))
        os.kill(pool[0], number)
        until(lambda: not is_running(pool), GONE_S)
        assert locks(root) == []
        assert one.poll() is None

    def test_when_all_is_compiled(self, file, root):
        done = threading.Event()
        state = programs_path(str(root), ["x"])
        with opened(state) as it:
            it.write(Programs(this_process(), (this_process(),)))
        watcher = threading.Thread(target=detached_pool.watch, args=(state, done), daemon=True)
        watcher.start()
        assert not threading.Event().wait(0.3)
        assert watcher.is_alive()
        done.set()
        watcher.join(GONE_S)
        assert not watcher.is_alive()
        assert locks(root) == []

    def test_a_program_that_comes_as_it_is_ending_is_served_by_it(self, file, root, monkeypatch):
        """The program registers after the last one was seen to be gone, and before the file is looked at again."""
        state = programs_path(str(root), ["x"])
        last, late = program(), program()
        with opened(state) as it:
            it.write(Programs(this_process(), (process_of(last.pid),)))
        wait_for = detached_pool._wait_for
        waits = []
        begun = threading.Event()

        def then_another_comes(watched, done):
            begun.set()
            wait_for(watched, done)
            waits.append(watched)
            if len(waits) == 1:
                with opened(state) as it:
                    it.write(Programs(this_process(), (*it.read().programs, process_of(late.pid))))

        monkeypatch.setattr(detached_pool, "_wait_for", then_another_comes)
        watcher = threading.Thread(
            target=detached_pool.watch, args=(state, threading.Event()), daemon=True
        )
        watcher.start()
        assert begun.wait(PATIENCE_S)
        last.kill()
        last.wait()
        until(lambda: waits)
        assert not threading.Event().wait(0.3)
        assert watcher.is_alive()
        late.kill()
        late.wait()
        watcher.join(GONE_S)
        assert not watcher.is_alive()
        assert len(waits) == 2

    def test_one_that_comes_after_it_has_ended_starts_another(self, registered, waiting_pool, root):
        """It has opened the file that the ending pool then removes: it makes the file anew."""
        one = program()
        state = programs_path(str(root), [str(root.parent / "r.jsonl"), ""])
        registered(one)
        assert os.path.basename(state) in locks(root)
        taken = threading.Event()
        told = []
        with opened(state) as it:
            later = threading.Thread(
                target=lambda: (taken.set(), told.append(registered(program())))
            )
            later.start()
            assert taken.wait(PATIENCE_S)
            os.kill(waiting_pool[0], signal.SIGKILL)
            until(lambda: process_of(waiting_pool[0]) is None)
            it.remove()
        later.join(PATIENCE_S)
        assert [one.did for one in told] == ["started"]
        assert len(locks(root)) == 1

    def test_the_pool_of_a_file_that_was_swept_serves_its_own_to_the_end(self, file, root):
        state = programs_path(str(root), ["x"])
        one, another = program(), program()
        other_pool = process_of(another.pid)
        with opened(state) as it:
            it.write(Programs(this_process(), (process_of(one.pid),)))
        watcher = threading.Thread(
            target=detached_pool.watch, args=(state, threading.Event()), daemon=True
        )
        watcher.start()
        assert not threading.Event().wait(0.3)
        with opened(state) as it:
            it.write(Programs(other_pool, (other_pool,)))
        one.kill()
        one.wait()
        watcher.join(GONE_S)
        assert not watcher.is_alive()
        with opened(state) as it:
            assert it.read().pool == other_pool
        another.kill()
        another.wait()

    def test_a_file_that_was_swept_is_put_back_and_the_programs_keep_their_pool(self, file, root):
        state = programs_path(str(root), ["x"])
        one, another = program(), program()
        both = (process_of(one.pid), process_of(another.pid))
        with opened(state) as it:
            it.write(Programs(this_process(), both))
        watcher = threading.Thread(
            target=detached_pool.watch, args=(state, threading.Event()), daemon=True
        )
        watcher.start()
        assert not threading.Event().wait(0.3)
        os.unlink(state)
        one.kill()
        one.wait()
        until(lambda: os.path.exists(state))
        with opened(state) as it:
            assert it.read() == Programs(this_process(), both[1:])
        another.kill()
        another.wait()
        watcher.join(GONE_S)
        assert not watcher.is_alive()

    def test_prune_and_doctor_leave_the_file_of_a_pool_that_runs(self, file, root, here):
        state = programs_path(str(root), ["x"])
        with opened(state) as it:
            it.write(Programs(this_process(), (this_process(),)))
        then = time.time() - 7200
        os.utime(state, (then, then))
        here("prune", "--root", root, "--yes")
        assert os.path.exists(state)
        assert "lock-stale" not in here("doctor", "--root", root).out
        pid, start = this_process()
        with opened(state) as it:
            it.write(Programs((pid, start - 1), (this_process(),)))
        os.utime(state, (then, then))
        assert "lock-stale" in here("doctor", "--root", root).out
        here("prune", "--root", root, "--yes")
        assert not os.path.exists(state)


class TestTheFile:
    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"pool": 7, "programs": []}', '{"pool": null, "programs": [[1]]}']
    )
    def test_nonsense_in_it_is_nobody(self, text, file, root):
        state = programs_path(str(root), ["x"])
        Path(state).write_text(text)
        with opened(state) as it:
            assert it.read() == Programs()

    def test_whoever_finds_it_held_goes_on_soon(self, file, root):
        state = programs_path(str(root), ["x"])
        with opened(state):
            began = time.monotonic()
            with pytest.raises(OSError):
                with opened(state, 0.1):
                    pass
            assert time.monotonic() - began < 5

    def test_a_link_in_its_place_is_not_followed(self, file, root, tmp_path):
        state = programs_path(str(root), ["x"])
        (tmp_path / "elsewhere").write_text("mine")
        os.symlink(tmp_path / "elsewhere", state)
        with pytest.raises(OSError) as refused:
            with opened(state):
                pass
        assert refused.value.filename == state
        assert (tmp_path / "elsewhere").read_text() == "mine"

    def test_doctor_and_prune_read_it_as_a_lock(self, file, root):
        from gpucache.disk.locks import holder

        state = programs_path(str(root), ["x"])
        with opened(state) as it:
            it.write(Programs(this_process(), (this_process(),)))
        assert f"process {os.getpid()} on " in holder(state)
        assert holder(state).endswith("for compiling ahead of a program")


class TestTheProcess:
    def test_it_has_nothing_of_who_started_it(self, registered, waiting_pool):
        """Neither stdio, nor a pipe that was handed down, nor a terminal, nor a parent."""
        readable, writable = os.pipe()
        os.set_inheritable(writable, True)
        registered(program())
        (pool,) = waiting_pool
        os.close(writable)
        until(lambda: "detached" in Path(f"/proc/{pool}/cmdline").read_text())
        assert os.read(readable, 1) == b"", "its end is closed"
        os.close(readable)
        for fd in (0, 1, 2):
            assert os.readlink(f"/proc/{pool}/fd/{fd}") == "/dev/null"
        assert os.getsid(pool) != os.getsid(0)
        parent = Path(f"/proc/{pool}/stat").read_text().rpartition(") ")[2].split()[1]
        assert int(parent) != os.getpid()
        with pytest.raises(ChildProcessError):
            os.waitpid(pool, os.WNOHANG)
        assert Path(f"/proc/{pool}/oom_score_adj").read_text() == "500\n"

    def test_it_records_nothing_itself(self, file, root, waiting_pool, monkeypatch):
        monkeypatch.setenv("GPUCACHE_RECORD", "/somewhere")
        seen = []
        monkeypatch.setattr(ahead, "start_detached", lambda _, environ: seen.append(environ))
        asked(file, root)
        assert "GPUCACHE_RECORD" not in seen[0]

    def test_what_it_is_asked_is_all_it_needs(self, file, root, waiting_pool, monkeypatch):
        seen = []
        monkeypatch.setattr(ahead, "start_detached", lambda command, _: seen.append(command))
        asked(file, root, "sm_90")
        said = json.loads(seen[0][-1])
        assert (said["paths"], said["root"], said["targets"]) == ([str(file)], str(root), ["sm_90"])


@pytest.mark.parametrize(
    ("cores", "ranks", "jobs"), [(64, 8, 56), (8, 8, 1), (2, 0, 2), (1, 4, 1), (16, 1, 15)]
)
def test_by_default_each_core_has_a_job_that_no_rank_has(cores, ranks, jobs):
    assert default_jobs(cores, ranks) == jobs
