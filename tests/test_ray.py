"""Shards as tasks of a real Ray, as `docs/warm-on-slurm-and-ray.md` says."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.processes import PATIENCE_S
from support.ray_cluster import ray_cluster
from support.recorded import COUNT, Recorded, code_of_the_page, recorded

CANCEL = """
ray.init()
task = warm.remote(1)
input()
ray.cancel(task, force=True)
try:
    ray.get(task)
except (ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError):
    pass
"""
"""Only the cancelling ends the task, whose kernels hang at their import. It may end with its counts: before Ray ends a
worker it kills the worker's children, and the pool tells of theirs if it is the faster one."""
pytestmark = [pytest.mark.ray, pytest.mark.compiles]


@pytest.fixture
def program(triton: None, tmp_path: Path) -> Recorded:
    return recorded(tmp_path / "shared", tmp_path / "apart")


@pytest.fixture
def cluster(program: Recorded) -> Iterator[Mapping[str, str]]:
    with ray_cluster(program.environ) as environ:
        yield environ


def run(code: str, environ: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tasks_of_the_page_are_all_recipes_and_no_two_have_one_in_common(
    program: Recorded, cluster: Mapping[str, str]
) -> None:
    assert program.stored() == []
    said = run(program.here(code_of_the_page("python")), cluster)
    counts = [ast.literal_eval(line) for line in said.splitlines() if line.startswith("{")]
    assert len(counts) == 4
    assert sum(count["made"] for count in counts) == COUNT
    assert {name for count in counts for name, number in count.items() if number} == {"made"}
    assert program.stored() == program.keys()
    assert program.compiles() == 0


def test_a_cancelled_task_leaves_no_process(program: Recorded, cluster: Mapping[str, str]) -> None:
    """Ray kills the process of the task; the pool hears that its caller is gone."""
    program.hang_at_import()
    tasks = program.here(code_of_the_page("python")).partition("ray.init()")[0]
    command = [sys.executable, "-c", tasks + CANCEL]
    with subprocess.Popen(command, env=dict(cluster), stdin=subprocess.PIPE, text=True) as asking:
        program.until_it_is_imported()
        assert program.warming() != []
        asking.communicate("\n", timeout=PATIENCE_S)
    assert asking.returncode == 0
    program.until_no_process_is_left()
