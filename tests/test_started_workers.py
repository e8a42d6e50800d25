"""Workers that a program starts itself, as `docs/workers.md` has them start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.processes import PATIENCE_S, python_path
from support.ray_cluster import ray_cluster

from gpucache import DeviceCacheRegistry

SUPPORT = Path(__file__).with_name("support")
PAGE = (Path(__file__).parents[1] / "docs/workers.md").read_text(encoding="utf-8")
WORKERS = 2
"""Instead of the page's four, since each takes a second of processor time to start."""
COMPILED = 2
"""How many kernels `train` compiles where nobody has."""
SCRIPT = [sys.executable, str(SUPPORT / "train.py")]
pytestmark = pytest.mark.compiles


def page(heading: str) -> str:
    """The Python of a section of the page."""
    (section,) = re.findall(rf"^### {heading}.*?\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block).replace("range(4)", f"range({WORKERS})").replace("(4,", f"({WORKERS},")


@pytest.fixture
def environ(triton: None, root: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a program with four devices, which were provisioned; Triton's home is the test's own."""
    made = {
        **os.environ,
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_FAKE_DEVICES": "4xH100:9.0",
        "TRITON_HOME": str(tmp_path / "home"),
        "PYTHONPATH": python_path(SUPPORT),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    DeviceCacheRegistry(environ=made).provision()
    return made


def started(
    words: list[str], environ: Mapping[str, str], cwd: Path
) -> tuple[list[dict[str, Any]], str]:
    """What each worker says, in the order of their directories, and what is on stderr."""
    done = subprocess.run(
        words, env=environ, cwd=cwd, capture_output=True, text=True, timeout=4 * PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(said, key=lambda one: str(one["directory"])), done.stderr


def sum_of_compiles(said: list[dict[str, Any]]) -> int:
    return sum(one["compiled"] for one in said)


def below(root: Path, numbers: range) -> list[str]:
    return [f"{root}/triton/{number}" for number in numbers]


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_have_their_directories_and_compile_once(method, environ, root, tmp_path):
    code = page("multiprocessing").replace('"spawn"', f'"{method}"')
    (tmp_path / "program.py").write_text(code)
    said, err = started([sys.executable, "program.py"], environ, tmp_path)
    assert [one["directory"] for one in said] == below(root, range(WORKERS))
    assert sum_of_compiles(said) == COMPILED
    assert err == ""


def test_a_pool_has_a_directory_for_each_worker_and_compiles_once(environ, root, tmp_path):
    (tmp_path / "program.py").write_text(page("A pool of processes"))
    said, err = started([sys.executable, "program.py"], environ, tmp_path)
    workers = {one["pid"]: one["directory"] for one in said}
    assert len(said) == 8
    assert set(workers.values()) <= set(below(root, range(WORKERS)))
    assert len(set(workers.values())) == len(workers)
    assert sum_of_compiles(said) == COMPILED
    assert err == ""


def test_a_worker_of_pytest_xdist_has_the_directory_of_its_number(environ, root, tmp_path):
    (tmp_path / "program.py").write_text(
        page("pytest-xdist") + "\nfrom train import train\ntrain()\n"
    )
    own = {**environ, "PYTEST_XDIST_WORKER": "gw3"}
    said, _ = started([sys.executable, "program.py"], own, tmp_path)
    assert [one["directory"] for one in said] == below(root, range(3, 4))


WITHOUT_RANK = """
import multiprocessing, sys
from train import train

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=train) for _ in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_without_a_rank_workers_compile_once_and_nothing_is_said(method, environ, tmp_path):
    """As `vllm serve` under `gpucache run`: what is on stderr is told with and without workers."""
    (tmp_path / "program.py").write_text(WITHOUT_RANK)
    run = [sys.executable, "-m", "gpucache", "run", "--"]
    said, err = started([*run, sys.executable, "program.py", method], environ, tmp_path)
    assert [one["directory"] for one in said] == [None] * WORKERS
    assert sum_of_compiles(said) == COMPILED
    (line,) = err.splitlines()
    assert line.startswith("warning: the devices are fake")


# ---- the launchers themselves


@pytest.fixture
def cluster(environ: dict[str, str]) -> Iterator[dict[str, str]]:
    with ray_cluster(environ, gpus=4) as started:
        yield started


@pytest.mark.ray
def test_actors_of_ray_have_their_directories_and_compile_once(cluster, root, tmp_path):
    (tmp_path / "program.py").write_text(page("Ray"))
    done = subprocess.run(
        [sys.executable, "program.py"],
        env=cluster,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said = [eval(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(one["directory"] for one in said) == below(root, range(WORKERS))
    assert sum_of_compiles(said) == COMPILED


@pytest.mark.torch
@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("accelerate.commands.launch", f"--multi_gpu --num_processes {WORKERS} --no_python"),
        ("torch.distributed.run", f"--no-python --nproc-per-node {WORKERS}"),
    ],
)
def test_a_launcher_of_ranks_gives_each_its_directory(launcher, words, environ, root, tmp_path):
    pytest.importorskip(launcher.partition(".")[0])
    run = f"{sys.executable} -m gpucache run -- {' '.join(SCRIPT)}"
    line = f"{sys.executable} -m {launcher} {words} {run}"
    said, err = started(line.split(), environ, tmp_path)
    assert [one["directory"] for one in said] == below(root, range(WORKERS)), err
    assert sum_of_compiles(said) == COMPILED


@pytest.mark.torch
def test_a_launcher_below_run_compiles_once(environ, tmp_path):
    run = [sys.executable, "-m", "gpucache", "run", "--", sys.executable]
    words = [*run, "-m", "torch.distributed.run", "--nproc-per-node", "2", SCRIPT[-1]]
    said, _ = started(words, environ, tmp_path)
    assert len(said) == 2
    assert sum_of_compiles(said) == COMPILED


@pytest.mark.torch
def test_torchs_own_spawn_gives_each_process_its_directory(environ, root, tmp_path):
    code = page("multiprocessing").partition("if __name__")[0]
    code += 'if __name__ == "__main__":\n    import torch.multiprocessing\n'
    code += "    torch.multiprocessing.spawn(worker, nprocs=2)\n"
    (tmp_path / "program.py").write_text(code)
    said, _ = started([sys.executable, "program.py"], environ, tmp_path)
    assert [one["directory"] for one in said] == below(root, range(WORKERS))
    assert sum_of_compiles(said) == COMPILED
