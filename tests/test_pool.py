"""`Pool`: each recipe ends, whatever modules and kernels do; and nothing of the pool is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from support.pools import Modules, is_gone, modules, processes_with
from support.processes import PATIENCE_S

from gpucache.kernels.recipe import Target, to_text
from gpucache.kernels.recipe_lines import BadLine
from gpucache.warm.outcome import Outcome
from gpucache.warm.pool import scheduler_process
from gpucache.warm.pool.packages import Package
from gpucache.warm.pool.plan import Job
from gpucache.warm.pool.pool import Pool
from gpucache.warm.pool.report import Progress
from gpucache.warm.pool.scheduler_process import PoolError
from gpucache.warm.pool.shard import Shard

assert modules  # a fixture

GOOD = """
    import os
    def one(): return os.getpid()
    def two(): return os.getpid()
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Outcome]]:
    """Run a pool over recipes; its outcomes."""

    def outcomes(recipes: Any, **settings: Any) -> list[Outcome]:
        pool = Pool(recipes, **{"root": str(tmp_path / "root"), "jobs": 2, **settings})
        report = pool.run()
        assert report.left == 0, report.why_left
        return list(report.outcomes)

    return outcomes


def test_each_recipe_ends_in_the_order_given(modules: Modules, run):
    modules.write("good", GOOD)
    modules.write("package.inner", GOOD)
    recipes = []
    for number in range(6):
        recipes.append(modules.recipe(("good", "package.inner")[number % 2], "one"))
    outcomes = run(recipes)
    assert [one.recipe for one in outcomes] == [one.key for one in recipes]
    assert [(one.end, one.target, one.key) for one in outcomes] == [
        ("made", "sm_90", f"{one.key}-sm_90") for one in recipes
    ]


TOGETHER = """
import os, time
def one():
    '''Wait for two others.'''
    open(f"{MARKS}/{os.getpid()}", "w").close()
    while len(os.listdir(MARKS)) < 3:
        time.sleep(0.001)
    return os.getpid()
"""


def test_as_many_processes_compile_as_asked_for_and_each_many_kernels(
    modules: Modules, run, tmp_path
):
    (tmp_path / "marks").mkdir()
    modules.write("together", f"MARKS = {str(tmp_path / 'marks')!r}" + TOGETHER)
    at_once: list[int] = []
    outcomes = run(
        [modules.recipe("together", "one") for _ in range(12)],
        jobs=3,
        on_progress=lambda progress: at_once.append(len(progress.compiling)),
    )
    assert len({one.why for one in outcomes}) == 3
    assert max(at_once) == 3


def test_one_process_compiles_all_kernels_of_a_package(modules: Modules, run):
    modules.write("good", GOOD)
    outcomes = run([modules.recipe("good", "one") for _ in range(8)], jobs=1)
    assert len({one.why for one in outcomes}) == 1


def test_each_recipe_is_compiled_for_each_target_once(modules: Modules, run):
    modules.write("good", GOOD)
    one, two = modules.recipe("good", "one"), modules.recipe("good", "two")
    targets = [Target("cuda", 80, 32), Target("hip", "gfx942", 64), Target("cuda", 80, 32)]
    outcomes = run([one, two, one], targets=targets)
    assert [(done.recipe, done.target) for done in outcomes] == [
        (one.key, "sm_80"),
        (one.key, "gfx942"),
        (two.key, "sm_80"),
        (two.key, "gfx942"),
    ]


def test_shards_are_disjoint_and_complete(modules: Modules, run):
    modules.write("good", GOOD)
    recipes = [modules.recipe("good", "one") for _ in range(20)]
    done = []
    for number in (1, 2, 3):
        done += [one.recipe for one in run(recipes, shard=Shard(number, 3))]
    assert sorted(done) == [one.key for one in recipes]


def test_the_longest_is_compiled_first(modules: Modules, run):
    modules.write("good", GOOD)
    recipes = [modules.recipe("good", "one", kernel=str(number)) for number in range(4)]
    begun: list[str] = []

    def note(progress: Progress) -> None:
        begun.extend(one.kernel for one in progress.compiling if one.kernel not in begun)

    seconds = {recipes[1].key: 1.0, recipes[2].key: 9.0, recipes[3].key: 4.0}
    run(recipes, jobs=1, seconds=seconds, on_progress=note)
    assert begun == ["0", "2", "3", "1"]


def test_without_recipes_nothing_is_started(run, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run([]) == []


def test_lines_that_are_no_recipes_are_in_the_report(modules: Modules, tmp_path):
    modules.write("good", GOOD)
    bad = BadLine(2, "it is no JSON")
    report = Pool([modules.recipe("good", "one"), bad], root=str(tmp_path)).run()
    assert report.bad_lines == (bad,)
    assert report.counts == {"made": 1}


def test_a_recipe_that_is_too_long_is_told(modules: Modules, run):
    modules.write("good", GOOD)
    long = modules.recipe("good", "one", source="x" * 2**20)
    failed, made = run([long, modules.recipe("good", "one")])
    assert (failed.end, failed.why) == ("failed", "a recipe of more than 1048576 bytes")
    assert made.end == "made"


# ---- modules and kernels that do what they like


BAD_MODULES = {
    "raises": ("raise ValueError('never')", "ValueError: never"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "vanishes": ("import os; os._exit(3)", "its process ended with exit code 3"),
    "says why": (
        "import os; print('first', flush=True); os.write(2, b'the\\x1b[31m last'); os._exit(3)",
        "exit code 3: first the\\x1b[31m last",
    ),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "its process was killed by SIGSEGV"),
    "hangs": ("import time; time.sleep(1000)", "more than the time limit of 2 s"),
    "ignores": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
        "more than the time limit of 2 s",
    ),
    "asks": ("input('Yes? ')", "EOFError: EOF when reading a line"),
    "asks the terminal": ("open('/dev/tty')", "OSError: [Errno 6]"),
    "closes all": ("import os; os.closerange(3, 100)", ""),
    "is no module": ("def", "SyntaxError: invalid syntax"),
    "lacks it": ("", "has no one now"),
}


@pytest.mark.parametrize("what", BAD_MODULES)
def test_a_module_ends_its_own_recipes_and_no_others(modules: Modules, run, what):
    """Also where modules of its own package are imported before it and after."""
    text, why = BAD_MODULES[what]
    modules.write("package.a", GOOD)
    modules.write("package.bad", text)
    modules.write("package.c", GOOD)
    modules.write("other", GOOD)
    names = ["package.a", "package.bad", "package.c", "other", "package.bad"]
    recipes = [modules.recipe(name, "one") for name in names]
    outcomes = run(recipes, time_limit_s=2 if "time limit" in why else 60)
    ends = [one.end for one in outcomes]
    bad = "cannot be imported"
    assert ends == ["made", bad, "made", "made", bad], outcomes
    assert why in outcomes[1].why
    assert outcomes[1].why == outcomes[4].why


STRANGE_MODULES = {
    "prints": "import os\nprint('x' * 10**6)\nos.write(1, b'{}')\nos.write(2, b'y' * 10**6)",
    "changes the directory": "import os; os.chdir('/')",
    "changes the umask": "import os; os.umask(0o777)",
    "changes variables": "import os; os.environ.clear(); os.environ['PATH'] = ''",
    "starts a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "starts a process": "import subprocess; subprocess.Popen(['sleep', '1000'])",
    "starts a process in a session": "import subprocess\n"
    "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "forks": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)",
    "handles signals": "import signal\n"
    "for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):\n"
    "    signal.signal(number, signal.SIG_IGN)",
    "waits for any": "import os\ntry:\n    os.wait()\nexcept OSError:\n    pass",
    "closes its streams": "import sys; sys.stdout = sys.stderr = None",
    "registers ends": "import atexit, time; atexit.register(time.sleep, 1000)",
    "closes stdio": "import os; os.closerange(0, 3)",
    "asks for orphans": "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)",
    "has sockets wait for nothing": "import socket; socket.setdefaulttimeout(0.0)",
    "warns of nothing": "import warnings; warnings.simplefilter('error')",
}


@pytest.mark.parametrize("what", STRANGE_MODULES)
def test_a_module_may_do_strange_things_to_its_process(modules: Modules, run, tmp_path, what):
    """What its kernels see is the environment, directory and umask of the caller; and what it has started ends."""
    mark = f"strange{os.getpid()}"
    seen = "\nimport os\ndef one(): return os.environ['MARK'], os.getcwd(), os.umask(0)\n"
    modules.write("strange", STRANGE_MODULES[what] + seen)
    modules.write("good", GOOD)
    os.environ["MARK"] = mark
    try:
        recipes = [modules.recipe("strange", "one"), modules.recipe("good", "one")]
        strange, good = run(recipes, time_limit_s=60)
    finally:
        del os.environ["MARK"]
    assert (strange.end, good.end) == ("made", "made"), (strange, good)
    umask = os.umask(0)
    os.umask(umask)
    assert strange.why == str((mark, os.getcwd(), umask))
    assert processes_with(f"MARK={mark}") == {}


BAD_KERNELS = {
    "raises": ("raise ValueError('never')", "ValueError: never"),
    "exits": ("sys.exit(3)", "SystemExit: 3"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "vanishes": ("os._exit(3)", "its process ended with exit code 3"),
    "is killed": ("os.kill(os.getpid(), 9)", "its process was killed by SIGKILL (out of memory?)"),
    "aborts": (
        "os.write(2, b'LLVM ERROR: cannot select'); os.abort()",
        "its process was killed by SIGABRT: LLVM ERROR: cannot select",
    ),
    "loops": ("[None for _ in iter(int, 1)]", "it took more than the time limit of 2 s"),
    "waits": ("subprocess.run(['sleep', '1000'])", "it took more than the time limit of 2 s"),
    "leaves a process": ("subprocess.Popen(['sleep', '1000']); os._exit(3)", "exit code 3"),
}


@pytest.mark.parametrize("what", BAD_KERNELS)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kernel_ends_its_own_recipe_and_no_others(modules: Modules, run, what, jobs, monkeypatch):
    text, why = BAD_KERNELS[what]
    modules.write("kernels", f"import os, subprocess, sys\ndef one(): return 1\ndef bad(): {text}")
    names = ["one", "bad", "one", "one"]
    mark = f"{what}{os.getpid()}".replace(" ", "")
    limit = 2 if "time limit" in why else 60
    monkeypatch.setenv("MARK", mark)
    outcomes = run(
        [modules.recipe("kernels", name) for name in names], jobs=jobs, time_limit_s=limit
    )
    assert [one.end for one in outcomes] == ["made", "failed", "made", "made"]
    assert why in outcomes[1].why
    assert processes_with(f"MARK={mark}") == {}


def test_what_a_killed_kernel_has_in_temporary_files_goes_with_the_pool(
    modules: Modules, run, tmp_path, monkeypatch
):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    modules.write(
        "kernels",
        """
        import os, tempfile
        def bad():
            _, path = tempfile.mkstemp(suffix=".ptx")
            print(path, file=open(os.environ["TOLD"], "w"))
            os.kill(os.getpid(), 9)
        """,
    )
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    (outcome,) = run([modules.recipe("kernels", "bad")])
    assert outcome.end == "failed"
    assert str(place) in (tmp_path / "told").read_text()
    assert os.listdir(place) == []


def seconds_without_their_module(count: int) -> float:
    """The CPU time of taking so many recipes from a package, each of which has no function."""
    jobs = [Job(number, "p", "p", Target("cuda", 90, 32), number, 1) for number in range(count)]
    package = Package("p", jobs)
    began = time.process_time()
    taken = [package.take_recipe(number) for number in range(count)]
    assert [job for (job,) in taken] == jobs
    return time.process_time() - began


def test_ten_thousand_recipes_of_a_module_that_is_not_there_end_soon():
    """The time grows with their number, and not with its square, which were 64 times as much."""
    few = min(seconds_without_their_module(2000) for _ in range(5))
    many = min(seconds_without_their_module(16000) for _ in range(3))
    assert many < 30 * few


# ---- torch


def test_torch_is_imported_once_for_all_packages_that_want_it(modules: Modules, run, tmp_path):
    marks = tmp_path / "marks"
    modules.write("torch", f"with open({str(marks)!r}, 'a') as file: file.write('torch\\n')")
    for name in ("a.inner", "b.inner", "c"):
        modules.write(name, "import torch\nimport sys\ndef one(): return torch.__name__")
    modules.write("d", "import sys\ndef one(): return 'torch' in sys.modules")
    recipes = [modules.recipe(name, "one") for name in ("a.inner", "b.inner", "c", "d")]
    outcomes = run(recipes)
    assert [one.why for one in outcomes] == ["torch", "torch", "torch", "False"]
    assert marks.read_text() == "torch\n"


BAD_TORCH = {
    "raises": ("raise OSError('no such library')", "no such library"),
    "vanishes": ("import os; os._exit(9)", "exit code 9"),
}


@pytest.mark.parametrize("what", BAD_TORCH)
def test_where_torch_cannot_be_imported_each_package_tells_so(modules: Modules, run, what):
    text, why = BAD_TORCH[what]
    modules.write("torch", text)
    modules.write("a", "import torch\ndef one(): return 1")
    modules.write(
        "b",
        "def one():\n    return 1\ntry:\n    import os\nexcept Exception:\n    from torch import nn",
    )
    a, b = run([modules.recipe("a", "one"), modules.recipe("b", "one")])
    assert (a.end, b.end) == ("cannot be imported", "made")
    assert why in a.why


# ---- Triton


def test_without_triton_the_pool_says_so(modules: Modules, run, monkeypatch):
    modules.write("good", GOOD)
    monkeypatch.setenv("STAND_IN_PREPARE", "import no_triton")
    with pytest.raises(PoolError, match="ModuleNotFoundError: No module named 'no_triton'"):
        run([modules.recipe("good", "one")])


def test_a_triton_that_kills_its_process_is_told(modules: Modules, run, monkeypatch):
    modules.write("good", GOOD)
    monkeypatch.setenv(
        "STAND_IN_PREPARE", "import os; os.write(2, b'no such symbol'); os._exit(127)"
    )
    with pytest.raises(PoolError, match="its process ended with exit code 127: no such symbol"):
        run([modules.recipe("good", "one")])


@pytest.mark.parametrize("python", ["", "/nowhere/python", "/bin/false"])
def test_without_a_python_to_start_the_pool_says_so(modules: Modules, run, python, monkeypatch):
    modules.write("good", GOOD)
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(PoolError):
        run([modules.recipe("good", "one")])


# ---- limits

REFUSE = """
    from gpucache.warm.pool import importer
    fork_for, forks = importer.fork_for, []
    def refuse(scheduler):
        forks.append(1)
        if len(forks) {when}:
            raise OSError(11, 'Resource temporarily unavailable')
        return fork_for(scheduler)
    importer.fork_for = refuse
"""


def refusing(when: str) -> str:
    """The scheduler's start, where an importer is refused some of its forks, by the count of its and its parent's."""
    serve = "    serve({"
    return scheduler_process.START.replace(serve, REFUSE.replace("{when}", when) + serve)


def test_where_no_process_can_be_forked_each_recipe_is_told(modules: Modules, run, monkeypatch):
    modules.write("good", GOOD)
    monkeypatch.setattr(scheduler_process, "START", refusing(">= 1"))
    outcomes = run([modules.recipe("good", "one") for _ in range(3)])
    assert {(one.end, one.why) for one in outcomes} == {
        (
            "cannot be imported",
            "no process can be had for it: no process can be forked: Resource temporarily unavailable",
        )
    }


def test_under_a_limit_of_processes_those_that_there_are_go_on(modules: Modules, run, monkeypatch):
    """The package's importer is its parent's first fork, and may fork one worker."""
    modules.write(
        "good", "import os, time\ndef one():\n    time.sleep(0.1)\n    return os.getpid()"
    )
    monkeypatch.setattr(scheduler_process, "START", refusing(">= 3"))
    outcomes = run([modules.recipe("good", "one") for _ in range(6)], jobs=4)
    assert [one.end for one in outcomes] == ["made"] * 6
    assert len({one.why for one in outcomes}) == 1


def test_under_a_limit_of_files_one_package_comes_after_the_other(
    modules: Modules, run, monkeypatch
):
    serve = "    serve({"
    limit = "    import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
    start = scheduler_process.START.replace(serve, limit + serve)
    monkeypatch.setattr(scheduler_process, "START", start)
    names = [f"package{number}" for number in range(12)]
    for name in names:
        modules.write(name, "import time\ntime.sleep(0.05)\n" + dedent(GOOD))
    outcomes = run([modules.recipe(name, "one") for name in names], jobs=8)
    assert [one.end for one in outcomes] == ["made"] * 12, {one.why for one in outcomes}


# ---- the caller


def test_any_thread_may_run_a_pool_beside_others(modules: Modules, tmp_path):
    """Each in a process of its own that has threads and blocks signals."""
    modules.write("good", GOOD)
    reports = []

    def go(number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        recipes = [modules.recipe("good", "one") for _ in range(3)]
        reports.append(Pool(recipes, root=str(tmp_path), jobs=1).run())

    threads = [threading.Thread(target=go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [report.counts for report in reports] == [{"made": 3}] * 3


def test_a_caller_whose_sockets_have_a_time_limit_may_be_slow(modules: Modules, tmp_path):
    """The scheduler waits for it, with more to tell than a connection holds."""
    modules.write("good", GOOD)
    slow = [lambda: time.sleep(1)]  # longer than the scheduler needs to fill the connection
    recipes = [modules.recipe("good", "one") for _ in range(1000)]
    socket.setdefaulttimeout(60)
    try:
        pool = Pool(
            recipes, root=str(tmp_path), on_progress=lambda _: slow.pop()() if slow else None
        )
        report = pool.run()
    finally:
        socket.setdefaulttimeout(None)
    assert (report.counts, report.left, report.why_left) == ({"made": 1000}, 0, "")


NO_STDIO = """if True:
    import os, sys
    os.closerange(0, 3)
    from gpucache.warm.pool.pool import Pool
    from gpucache.warm.pool import scheduler_process
    scheduler_process.START = sys.argv[2]
    from gpucache.kernels.recipe import from_text
    pool = Pool([from_text(sys.argv[3].encode())], root=sys.argv[1])
    try:
        said = repr(pool.run().counts)
    except Exception as error:
        said = repr(error)
    with open(sys.argv[1] + "/said", "w") as file:
        file.write(said)
"""


def test_a_caller_may_have_no_stdio(modules: Modules, tmp_path):
    modules.write("good", GOOD)
    words = [
        str(tmp_path),
        scheduler_process.START,
        to_text(modules.recipe("good", "one")).decode(),
    ]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", NO_STDIO, *words], env=environ, timeout=60)
    assert (tmp_path / "said").read_text() == "{'made': 1}"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable that only the processes of this test's pools have."""
    monkeypatch.setenv("MARK", f"pool{os.getpid()}.{time.monotonic_ns()}")
    return f"MARK={os.environ['MARK']}"


def endless(modules: Modules, count: int = 3) -> list[Any]:
    """Recipes of which the first is made at once, and the others never are."""
    modules.write(
        "endless",
        "import subprocess\ndef one(): return 1\ndef never(): subprocess.run(['sleep', '1000'])",
    )
    names = ["one"] + ["never"] * (count - 1)
    return [modules.recipe("endless", name) for name in names]


def when_compiling(act: Callable[[], None]) -> Callable[[Progress], None]:
    """Do this once, as soon as a kernel has ended and others are at work."""
    acts = [act]

    def look(progress: Progress) -> None:
        if acts and progress.done and progress.compiling:
            acts.pop()()

    return look


def test_a_pool_can_be_stopped_from_another_thread(modules: Modules, tmp_path, mark):
    pool = Pool(
        endless(modules),
        root=str(tmp_path),
        jobs=2,
        on_progress=when_compiling(lambda: threading.Thread(target=lambda: pool.stop()).start()),
    )
    report = pool.run()
    assert (report.counts, report.left, report.why_left) == ({"made": 1}, 2, "it was stopped")
    assert processes_with(mark) == {}
    pool.stop()  # of which nothing comes any more


def signal_all(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def test_time_in_which_the_pool_is_stopped_does_not_count(modules: Modules, tmp_path, mark):
    """As ``scontrol suspend`` stops a job; the scheduler goes on before the others, and finds that they are late."""
    modules.write("slow", "import time\ndef one(): return 1\ndef slow(): time.sleep(1)")
    recipes = [modules.recipe("slow", "one"), modules.recipe("slow", "slow")]

    def suspend() -> None:
        found = processes_with(mark)
        scheduler = [pid for pid in found if found[pid] == "gpucache-warm"]
        signal_all(signal.SIGSTOP, found)
        time.sleep(4)  # longer than the limit
        signal_all(signal.SIGCONT, scheduler)
        time.sleep(0.3)  # in which it looks at the clock
        signal_all(signal.SIGCONT, found)

    report = Pool(
        recipes,
        root=str(tmp_path),
        jobs=1,
        time_limit_s=3,
        on_progress=when_compiling(suspend),
    ).run()
    assert report.counts == {"made": 2}, report.outcomes


def test_a_pool_whose_scheduler_is_stopped_can_be_ended(modules: Modules, tmp_path, mark):
    def stop() -> None:
        found = processes_with(mark)
        signal_all(signal.SIGSTOP, [pid for pid in found if found[pid] == "gpucache-warm"])
        pool.stop()

    pool = Pool(endless(modules), root=str(tmp_path), jobs=2, on_progress=when_compiling(stop))
    assert pool.run().why_left == "it was stopped"
    assert processes_with(mark) == {}


def test_a_pool_that_is_stopped_before_it_runs_starts_nothing(
    modules: Modules, tmp_path, monkeypatch
):
    pool = Pool(endless(modules), root=str(tmp_path))
    pool.stop()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pool.run().left == 3


def test_a_pool_ends_once_it_is_not_wanted_any_more(modules: Modules, tmp_path, mark):
    wanted = [True]
    pool = Pool(
        endless(modules),
        root=str(tmp_path),
        jobs=2,
        on_progress=when_compiling(wanted.clear),
        is_wanted=lambda: bool(wanted),
    )
    report = pool.run()
    assert (report.left, report.why_left) == (2, "it was not wanted any more")
    assert processes_with(mark) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_of_the_caller_ends_the_pool_and_the_report_stays(
    modules: Modules, tmp_path, mark, error
):
    def fail() -> None:
        raise error

    pool = Pool(endless(modules), root=str(tmp_path), jobs=2, on_progress=when_compiling(fail))
    with pytest.raises(error):
        pool.run()
    assert pool.report.counts == {"made": 1}
    assert processes_with(mark) == {}


CALLER = """if True:
    import ctypes, os, signal, sys, threading
    from gpucache.warm.pool.pool import Pool
    from gpucache.warm.pool import scheduler_process
    scheduler_process.START = sys.argv[2]
    from gpucache.kernels.recipe import from_text
    recipes = [from_text(line.encode()) for line in sys.argv[3:]]

    threads = []

    def tell(progress):
        if progress.done and progress.compiling and not threads:
            print("compiling", flush=True)
            threads.append(threading.Thread(target=fork, daemon=True))
            threads[0].start()

    def fork():
        for how in sys.stdin:
            pid = eval(how)()
            if pid == 0:
                signal.pause()
            print(pid, flush=True)

    pool = Pool(recipes, root=sys.argv[1], jobs=2, on_progress=tell)
    signal.signal(signal.SIGTERM, lambda *_: pool.stop())
    signal.signal(signal.SIGHUP, lambda *_: pool.stop())
    try:
        pool.run()
    except KeyboardInterrupt:
        print("interrupted")
    print(pool.report.counts, pool.report.left)
"""


@pytest.fixture
def caller(modules: Modules, tmp_path: Path, mark: str) -> Any:
    """A process that runs a pool of which a kernel never ends, and is compiling."""
    lines = [to_text(one).decode() for one in endless(modules)]
    path = os.pathsep.join(sys.path)
    started = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(tmp_path / "root"), scheduler_process.START, *lines],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "compiling\n"
        yield started
        started.kill()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_caller_ends_the_pool_and_is_told(caller, mark, name):
    caller.send_signal(getattr(signal, name))
    lines = caller.stdout.read().splitlines()
    assert lines[-1] == "{'made': 1} 2"
    assert ("interrupted" in lines) is (name == "SIGINT")
    caller.wait()
    assert processes_with(mark) == {}


@pytest.mark.parametrize("stopped", [False, True])
def test_when_the_caller_is_killed_its_pool_ends(caller, mark, stopped):
    if stopped:
        found = processes_with(mark)
        signal_all(signal.SIGSTOP, [pid for pid in found if found[pid] == "gpucache-warm"])
    caller.kill()
    caller.wait()
    assert is_gone(mark)


@pytest.mark.parametrize("how", ["os.fork", "ctypes.CDLL(None).fork"])
def test_a_process_that_the_caller_has_forked_keeps_no_pool_alive(caller, mark, how):
    """It has a copy of the connection, which Python's fork closes, and C's does not."""
    caller.stdin.write(how + "\n")
    caller.stdin.flush()
    forked = int(caller.stdout.readline())
    try:
        caller.kill()
        caller.wait()
        deadline = time.monotonic() + PATIENCE_S
        while processes_with(mark).keys() > {forked} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes_with(mark).keys() == {forked}
    finally:
        os.kill(forked, signal.SIGKILL)


def test_the_processes_of_a_pool_are_about_its_root(modules: Modules, run, tmp_path, monkeypatch):
    """There lies Triton's own key where it is remembered; and what no program asks for is not recorded."""
    monkeypatch.setenv("GPUCACHE_DIR", "/nowhere")
    monkeypatch.setenv("GPUCACHE_RECORD", "/nowhere")
    modules.write(
        "asks",
        "import os\ndef one():\n    return [os.environ.get(name) for name in NAMES]\n"
        "NAMES = ['GPUCACHE_DIR', 'GPUCACHE_RECORD']",
    )
    (outcome,) = run([modules.recipe("asks", "one")])
    assert outcome.why == str([str(tmp_path / "root"), None])
