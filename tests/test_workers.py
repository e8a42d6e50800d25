"""`verify` in several processes: the same findings, whatever becomes of the processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tree

from gpucache.layout.keys import view_key
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.upkeep import workers
from gpucache.upkeep.verify import Verification, verify

PATIENCE_S = 60.0
KEYS = 100


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hundred kernels, of which some are damaged, and a limit by which they are work for several processes."""
    monkeypatch.setattr(workers, "LEAST_UNITS", 20)
    root = str(tmp_path / "root")
    for number, key in enumerate(tree.make(root, KEYS, 2)):
        entry = Path(entry_path(root, key))
        if number % 7 == 0:
            next(entry.glob("*.ptx")).write_bytes(b"cut")
        if number % 11 == 0:
            (entry / MANIFEST).write_text("{}")
        if number % 13 == 0:
            next(Path(f"{root}/triton/1/{key}").glob("__grp__*")).unlink()
    return root


def starting(*lines: str) -> str:
    """What a process does instead of what it should."""
    start = ["import os, sys", "sys.path[:] = {path!r}", "from gpucache.upkeep import workers"]
    return "\n".join([*start, *lines, "workers.serve({answers})"])


@pytest.fixture
def alone(root: str) -> Verification:
    return verify(root, processes=1)


def test_the_findings_are_those_of_one_process_in_the_same_order(root, alone):
    assert len(alone.findings) > 30
    subjects = [one.finding.subject for one in alone.findings]
    keys = [view_key(subject.removeprefix(f"{root}/").split("/")[-2]) for subject in subjects]
    assert keys == sorted(keys)
    assert verify(root, processes=3) == alone


def test_a_repair_mends_the_same(root, alone, tmp_path):
    """What two processes and one find to mend, each in a root of its own."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", root, copy], check=True)
    mended = verify(root, repair=True, processes=4)
    assert [one.finding for one in mended.findings if one.finding.code != "group-elsewhere"] == [
        one.finding for one in alone.findings
    ]
    assert mended.unrepaired == ()
    assert verify(root, processes=4).findings == ()
    verify(str(copy), repair=True, processes=1)
    assert verify(str(copy), processes=1).findings == ()


def test_progress_comes_in_steps_up_to_the_total(root):
    seen: list[tuple[int, int]] = []
    verify(root, progress=lambda done, total: seen.append((done, total)), processes=2)
    assert seen == [(3 * n, 3 * KEYS) for n in range(1, KEYS + 1)]


@pytest.mark.parametrize("processes", [0, 1, None], ids=["none", "one", "a small root"])
def test_no_process_is_started_where_none_is_needed(root, alone, processes, monkeypatch):
    if processes is None:
        monkeypatch.setattr(workers, "LEAST_UNITS", KEYS)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert verify(root, processes=processes) == alone


def test_another_thread_may_verify(root, alone):
    found: list[Verification] = []
    thread = threading.Thread(target=lambda: found.append(verify(root, processes=2)))
    thread.start()
    thread.join(PATIENCE_S)
    assert found == [alone]


# ---- what may become of a process


def test_an_exception_in_a_process_is_the_callers(root, monkeypatch):
    failing = starting("workers.look = lambda *_: sys.modules['os'].stat('/nowhere/at/all')")
    monkeypatch.setattr(workers, "START", failing)
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all") as raised:
        verify(root, processes=2)
    assert "Traceback" in str(raised.value.__cause__)


def test_an_exception_that_cannot_be_sent_is_told(root, monkeypatch):
    failing = starting(
        "def look(*words):",
        "    class Odd(Exception): ...",
        "    raise Odd('one of a kind')",
        "workers.look = look",
    )
    monkeypatch.setattr(workers, "START", failing)
    with pytest.raises(RuntimeError, match="Odd: one of a kind"):
        verify(root, processes=2)


@pytest.mark.parametrize(
    "end",
    [
        "os._exit(9)",
        "os.kill(os.getpid(), 9)",
        r"os.write({answers}, b'\x80\x04]\x94') and os._exit(0)",
    ],
    ids=["ends", "is killed", "breaks off"],
)
def test_what_a_process_that_dies_leaves_undone_is_done_here(root, alone, end, monkeypatch):
    """At its first question, or at its second."""
    dying = starting(
        "real, asked = workers.look, []",
        "def look(*words):",
        "    asked.append(1)",
        f"    return {end} if len(asked) > 40 else real(*words)",
        "workers.look = look",
    )
    monkeypatch.setattr(workers, "START", dying)
    assert verify(root, processes=2) == alone
    monkeypatch.setattr(workers, "START", starting(end))
    assert verify(root, processes=2) == alone


@pytest.mark.parametrize("python", ["", None, "/nowhere/python", "/bin/false"])
def test_without_a_python_to_start_all_is_done_here(root, alone, python, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    assert verify(root, processes=2) == alone


def test_an_exception_of_the_caller_ends_the_processes(root, monkeypatch):
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    started: list[subprocess.Popen[bytes]] = []
    real: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def popen(*words: object, **more: object) -> subprocess.Popen[bytes]:
        started.append(real(*words, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        verify(root, progress=interrupted, processes=2)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize("how", ["atexit.register(go)", "threading.Thread(target=go).start()"])
def test_a_verify_while_the_interpreter_ends_is_whole(root, alone, python, how):
    """No thread can be started then."""
    code = f"""if True:
        import atexit, sys, threading
        from gpucache.upkeep import workers
        from gpucache.upkeep.verify import verify
        workers.LEAST_UNITS = 20
        def go():
            threading.main_thread().join() if threading.current_thread() is not threading.main_thread() else None
            print(verify(sys.argv[1], processes=2).files)
        {how}
    """
    done = python(code, root)
    assert (done.stdout, done.stderr) == (f"{alone.files}\n", "")


@pytest.mark.parametrize(
    "limit", ["resource.RLIMIT_NPROC, (0, 0)", "resource.RLIMIT_NOFILE, (8, 8)"]
)
@pytest.mark.root
def test_under_a_limit_of_processes_or_files_all_is_done_here(
    as_root, everyones, root, alone, limit
):
    """For another user: the number of processes does not bind root."""
    copy = everyones / "root"
    shutil.copytree(root, copy, copy_function=os.link)
    code = f"""if True:
        import os, pickle, resource, sys
        import gpucache.upkeep.verify as module
        from gpucache.upkeep import looks, workers
        workers.LEAST_UNITS = 20
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        resource.setrlimit({limit})
        found = module.verify({str(copy)!r}, processes=2)
        print(found.files, {{one.finding.code for one in found.findings}})
    """
    for path in (copy, *copy.rglob("*")):
        os.chown(path, 65534, 65534)
    # Under these limits no coverage could be written.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    assert "unreadable" not in ended.stdout
    assert ended.stdout.split()[0] == str(alone.files)


def test_a_module_path_that_is_no_text_is_no_trouble(root, alone, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere"), None])
    assert verify(root, processes=2) == alone
    assert capfd.readouterr().err == ""


SCRIPT = """
import os, signal, sys
from gpucache.upkeep import workers
from gpucache.upkeep.verify import verify
workers.LEAST_UNITS = 20

def stop(done, total):
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        print(file.read(), flush=True)
    signal.pause()

verify(sys.argv[1], progress=stop, processes=2)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_the_processes_end_when_the_caller_is_killed(root, tmp_path):
    """A script that calls `verify` without asking whether it is the main module."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    caller = subprocess.Popen([sys.executable, path, root], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    children = [int(word) for word in caller.stdout.readline().split()]
    assert len(children) == 2
    assert all(map(is_running, children))
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, children))
    caller.stdout.close()


def is_running(pid: int) -> bool:
    """Whether a process is there, and not just waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
