"""Whichever process of a pool is killed, and whenever: the cache is whole, nothing is left, and the rest is compiled.

The moments are random, and placed by what has come to be in the root so far: locks, staged files, entries.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pools import comes_true, is_gone, processes_with
from support.ranks import KERNELS, PLUGIN, compile_kernels

from gpucache.disk.locks import is_free
from gpucache.kernels.recipe import Recipe
from gpucache.kernels.recipe_lines import read_recipe_file
from gpucache.upkeep.verify import verify
from gpucache.warm.pool.pool import Pool

pytestmark = [pytest.mark.compiles, pytest.mark.kills]

COUNT = 4
TIMES = int(os.environ.get("GPUCACHE_TEST_KILLS", "4"))
"""Random moments for each kind of process; more are for whoever has changed what these processes do."""
_PAUSE_S = 0.0005


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Path:
    """A file of the recipes of some kernels."""
    base = tmp_path_factory.mktemp("recorded")
    env = {
        **PLUGIN,
        "GPUCACHE_DIR": str(base / "root"),
        "TRITON_CACHE_DIR": str(base / "root/triton/0"),
        "GPUCACHE_RECORD": str(base / "recipes.jsonl"),
    }
    compile_kernels(env, COUNT, 90)
    return base / "recipes.jsonl"


class Watch:
    """Calls a function once so many files have come to be in the store's directories."""

    def __init__(self, root: Path, count: int, act: Callable[[], bool]) -> None:
        """``act`` is called again until it returns True."""
        self.seen: set[str] = set()
        self.has_acted = False
        self._places = [root / "gpucache/v1" / name for name in ("locks", "tmp", "store")]
        self._count = count
        self._act = act
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_PAUSE_S) and not self.has_acted:
            for place in self._places:
                for directory, _, names in os.walk(place):
                    self.seen.update(os.path.join(directory, name) for name in names)
            if len(self.seen) >= self._count:
                self.has_acted = self._act()


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable that only the processes of this test's pools have."""
    monkeypatch.syspath_prepend(str(KERNELS.parent))
    monkeypatch.setenv("GPUCACHE_TEST_POOL", str(os.getpid()))
    return f"GPUCACHE_TEST_POOL={os.getpid()}"


def read(recipes: Path) -> list[Recipe]:
    found = [one for one in read_recipe_file(str(recipes)) if isinstance(one, Recipe)]
    assert len(found) == COUNT
    return found


def kill_one(mark: str, name: str) -> bool:
    """Kill one of the processes of a name, if there are any."""
    pids = [pid for pid, known in processes_with(mark).items() if known == name]
    if pids:
        try:
            os.kill(random.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
    return bool(pids)


def check_all_is_well(root: Path, mark: str, recipes: Path) -> None:
    """The cache is whole, no process and no lock is left, and the rest is compiled."""
    assert is_gone(mark)
    if root.exists():
        assert verify(str(root)).findings == ()
    # A process that is ending has no environment any more, and still its files.
    assert comes_true(lambda: all(map(is_free, map(str, root.glob("gpucache/v1/locks/*.lock")))))
    report = Pool(read(recipes), root=str(root), jobs=2).run()
    assert report.left == 0
    assert report.counts.keys() <= {"made", "there"}
    assert verify(str(root)).findings == ()


@pytest.fixture(scope="module")
def files_of_a_run(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many files come to be while a pool does its work."""
    root = tmp_path_factory.mktemp("whole") / "root"
    sys.path.insert(0, str(KERNELS.parent))
    with Watch(root, 10**6, lambda: True) as watch:
        report = Pool(read(recipes), root=str(root), jobs=2).run()
    sys.path.remove(str(KERNELS.parent))
    assert report.counts == {"made": COUNT}
    assert len(watch.seen) > 20
    return len(watch.seen)


VICTIMS = {
    "gpucache-warm": "the scheduler's process was killed by SIGKILL",
    "gpucache-import": "killed by SIGKILL",
    "gpucache-worker": "killed by SIGKILL",
}


@pytest.mark.parametrize("time_", range(TIMES))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_process_of_the_pool_may_be_killed(recipes, root, mark, files_of_a_run, victim, time_):
    random.seed(f"{victim} {time_}")
    count = random.randrange(files_of_a_run)
    with Watch(root, count, lambda: kill_one(mark, victim)):
        report = Pool(read(recipes), root=str(root), jobs=2).run()
    for outcome in report.outcomes:
        assert outcome.end == "made" or VICTIMS[victim] in outcome.why
    assert (report.left > 0) <= (VICTIMS[victim] in report.why_left)
    assert victim == "gpucache-warm" or report.left == 0
    check_all_is_well(root, mark, recipes)


CALLER = """if True:
    import sys
    from gpucache.warm import Pool, read_recipe_file
    Pool(read_recipe_file(sys.argv[1]), root=sys.argv[2], jobs=2).run()
"""


@pytest.mark.parametrize("time_", range(TIMES))
def test_the_caller_may_be_killed(recipes, root, mark, files_of_a_run, time_):
    random.seed(time_)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CALLER, recipes, root]
    with subprocess.Popen(command, env=environ) as caller:

        def kill() -> bool:
            caller.kill()
            return True

        with Watch(root, random.randrange(files_of_a_run), kill):
            caller.wait()
    check_all_is_well(root, mark, recipes)
