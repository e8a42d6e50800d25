"""`Pool`: each recipe ends, whatever modules and kernels do; and nothing of the pool is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pools import Modules, modules

from gpucache.kernels.recipe import Target
from gpucache.kernels.recipe_lines import BadLine
from gpucache.warm.outcome import Outcome
from gpucache.warm.pool import Pool
from gpucache.warm.report import Progress
from gpucache.warm.shard import Shard

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


def test_no_more_processes_compile_than_asked_for_and_each_many_kernels(modules: Modules, run):
    modules.write("good", GOOD)
    outcomes = run([modules.recipe("good", "one") for _ in range(8)], jobs=1)
    assert len({one.why for one in outcomes}) == 1
    modules.write(
        "slow", "import os, time\ndef one():\n    time.sleep(0.05)\n    return os.getpid()"
    )
    outcomes = run([modules.recipe("slow", "one") for _ in range(12)], jobs=3)
    assert len({one.why for one in outcomes}) == 3


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
    "warns of nothing": "import warnings; warnings.simplefilter('error')",
}


@pytest.mark.parametrize("what", STRANGE_MODULES)
def test_a_module_may_do_strange_things_to_its_process(modules: Modules, run, tmp_path, what):
    """What its kernels see is the environment and the directory of the caller; and what it has started ends."""
    mark = f"strange{os.getpid()}"
    seen = "\nimport os\ndef one(): return os.environ['MARK'], os.getcwd()\n"
    modules.write("strange", STRANGE_MODULES[what] + seen)
    modules.write("good", GOOD)
    os.environ["MARK"] = mark
    try:
        recipes = [modules.recipe("strange", "one"), modules.recipe("good", "one")]
        strange, good = run(recipes, time_limit_s=60)
    finally:
        del os.environ["MARK"]
    assert (strange.end, good.end) == ("made", "made"), (strange, good)
    assert strange.why == str((mark, os.getcwd()))
    assert processes_with(f"MARK={mark}") == []


def processes_with(variable: str) -> list[int]:
    """The processes that were started with a variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


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
    assert processes_with(f"MARK={mark}") == []
