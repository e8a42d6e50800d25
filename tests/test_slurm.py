"""The command line under a real Slurm: its controller, and two nodes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support.cli import TEXT
from support.slurm import Slurm

(SRUN,) = re.findall(r"^srun .*$", TEXT, re.MULTILINE)
SAY = (
    "import os; n, d = os.environ['SLURMD_NODENAME'], os.environ['TRITON_CACHE_DIR'];"
    " os.write(1, f'{n} {d}\\n'.encode())"
)


@pytest.fixture
def environ(root: Path, tmp_path: Path) -> dict[str, str]:
    """The environment in which the README's lines are said: `gpucache` and `python` are this Python's."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "python").symlink_to(sys.executable)
    (commands / "gpucache").write_text(f'#!/bin/sh\nexec {sys.executable} -m gpucache "$@"\n')
    (commands / "gpucache").chmod(0o755)
    return {
        "PATH": f"{commands}:/usr/bin:/bin",
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_FAKE_DEVICES": "4",
    }


def directories(said: str) -> list[tuple[str, str]]:
    """Node and name of the device directory that each task says, sorted."""
    return sorted((line.split()[0], line.rpartition("/")[2]) for line in said.splitlines())


def test_the_readmes_srun_line_gives_each_task_a_device(
    two_node_slurm: Slurm, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SAY)
    done = two_node_slurm.run("sh", "-c", SRUN, cwd=tmp_path, **environ)
    assert directories(done.stdout) == [("one", str(number)) for number in range(4)]


def test_nodes_with_unlike_numbers_of_tasks_count_their_own(
    two_node_slurm: Slurm, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SAY)
    (tmp_path / "hosts").write_text("one\none\none\ntwo\ntwo\n")
    environ["SLURM_HOSTFILE"] = str(tmp_path / "hosts")
    words = "srun --ntasks 5 --distribution arbitrary gpucache run -- python train.py"
    done = two_node_slurm.run(*words.split(), cwd=tmp_path, **environ)
    assert directories(done.stdout) == [
        ("one", "0"),
        ("one", "1"),
        ("one", "2"),
        ("two", "0"),
        ("two", "1"),
    ]
