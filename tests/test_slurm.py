"""The command line under a real Slurm: its controller, and two nodes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from support.cli import TEXT
from support.processes import PATIENCE_S, until
from support.pulled_packs import Packs, until_pulled
from support.read_through import end_couriers
from support.recorded import COUNT, Recorded, code_of_the_page, compiled, recorded
from support.slurm import Slurm

TESTS = Path(__file__).parent
WAIT = """
import os, time
while not os.path.exists("go"):
    time.sleep(0.02)
"""
"""A program that ends once there is a file `go`."""
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
    # No link: Python would look beside the link for its environment, and not find what is installed there.
    for name, words in {"python": "", "gpucache": " -m gpucache"}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        (commands / name).chmod(0o755)
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


def test_a_task_without_gpucache_run_takes_its_device_by_itself(
    two_node_slurm: Slurm, environ: dict[str, str], tmp_path: Path
) -> None:
    """As `docs/workers.md` says."""
    use = "import os, gpucache; gpucache.use(int(os.environ['SLURM_LOCALID']))"
    (tmp_path / "train.py").write_text(f"{use}\n{SAY}")
    words = "gpucache provision >&2 && srun --ntasks-per-node 4 python train.py"
    done = two_node_slurm.run("sh", "-c", words, cwd=tmp_path, **environ)
    assert directories(done.stdout) == [("one", str(number)) for number in range(4)]


@pytest.fixture
def program(triton: None, tmp_path: Path) -> Recorded:
    return recorded(tmp_path / "shared", tmp_path / "apart")


class TestArray:
    """The lines of `docs/warm-on-slurm-and-ray.md`."""

    def test_its_tasks_compile_all_recipes_each_once_and_the_program_none(
        self, two_node_slurm: Slurm, program: Recorded, tmp_path: Path
    ) -> None:
        shutil.copy(tmp_path / "apart/bin/train.sh", tmp_path)
        lines = program.here(code_of_the_page("sh"))
        two_node_slurm.run("bash", "-ec", lines, cwd=tmp_path, **program.environ)
        jobs = two_node_slurm.ended(tmp_path)
        (train,) = (job for name, job in jobs.items() if "_" not in name)
        shards = [job for name, job in sorted(jobs.items()) if "_" in name]
        said = [shard.out.read_text() for shard in shards]
        assert [shard.state for shard in shards] == ["COMPLETED"] * 4, said
        assert {shard.node for shard in shards} == {"one", "two"}
        assert sum(made(text) for text in said) == COUNT
        assert program.stored() == program.keys()
        assert train.state == "COMPLETED", train.out.read_text()
        assert compiled(train.out.read_text()) == 0

    def test_a_cancelled_job_leaves_no_process(
        self, two_node_slurm: Slurm, program: Recorded, tmp_path: Path
    ) -> None:
        program.hang_at_import()
        lines = program.here(code_of_the_page("sh")).replace("train.sh", "--wrap true")
        said = two_node_slurm.run(
            "bash", "-ec", f"{lines}\necho $job", cwd=tmp_path, **program.environ
        )
        program.until_it_is_imported()
        assert program.warming() != []
        two_node_slurm.run("scancel", *said.stdout.split()[-1:], cwd=tmp_path)
        program.until_no_process_is_left()
        two_node_slurm.run("scancel", "--user", "root", cwd=tmp_path)
        two_node_slurm.ended(tmp_path)


class TestAheadOfTheProgram:
    """`srun gpucache run --warm`."""

    def test_a_step_ends_with_its_program_though_the_pool_goes_on(
        self, two_node_slurm: Slurm, program: Recorded, tmp_path: Path
    ) -> None:
        """A program outside of the step has asked for the same, so that the pool which the step started has to go on.

        Srun would wait for whoever has the program's stdio.
        """
        program.hang_at_import()
        (tmp_path / "train.py").write_text(WAIT)
        run = f"gpucache run --root {program.shared}/gpucache --warm {program.shared}/kernels.jsonl --"
        step = ("srun", "--ntasks-per-node", 2, *run.split(), "python", "train.py")
        other = (*run.split(), "sh", "-c", "touch asked; read line")
        with two_node_slurm.start(*step, cwd=tmp_path, **program.environ) as running:
            program.until_it_is_imported()
            with two_node_slurm.start(*other, cwd=tmp_path, **program.environ) as second:
                until((tmp_path / "asked").exists, "the other program does not run")
                (tmp_path / "go").touch()
                _, err = running.communicate(timeout=PATIENCE_S)
                assert running.returncode == 0, err
                assert program.warming() != []
                second.communicate("\n", timeout=PATIENCE_S)
        program.until_no_process_is_left()


def made(said: str) -> int:
    """How many kernels a shard has compiled; all of its recipes have ended so."""
    lines = [line.split("\t") for line in said.splitlines() if "\t" in line]
    assert [end for end, _ in lines] in ([], ["made"]), said
    return sum(int(count) for _, count in lines)


ASK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from support.launches import kernel, launched
hits = [launched(*kernel(f"kernel {number}"))[0] for number in range(12)]
os.write(1, f"{os.environ['SLURMD_NODENAME']} {hits.count(False)}\\n".encode())
"""


def test_the_tasks_of_a_node_pull_a_pack_once_and_compile_nothing(
    two_node_slurm: Slurm, environ: dict[str, str], root: Path, tmp_path: Path
) -> None:
    """Both nodes are this machine, and so share a store; of the four tasks of each at most one has the pack pulled.

    Those of one node may begin after the other's pull has ended: then that of theirs finds everything there.
    """
    remote = Packs.signed(tmp_path)
    remote.put("llama", [f"kernel {number}" for number in range(12)])
    (tmp_path / "train.py").write_text(ASK)
    environ |= remote.environ | {"GPUCACHE_PACK": "llama"}
    words = f"srun --ntasks 8 --ntasks-per-node 4 gpucache run -- python train.py {TESTS}"
    done = two_node_slurm.run(*words.split(), cwd=tmp_path, **environ)
    assert sorted(done.stdout.splitlines()) == ["one 0"] * 4 + ["two 0"] * 4
    # Of the runs of a node one tells, which may be one that has found the pull of another.
    assert (
        "GPUCACHE_PACK: process " in done.stderr or "GPUCACHE_PACK: another process" in done.stderr
    )
    until_pulled(root)
    assert len(list(root.glob("gpucache/v1/pulled/*"))) == 1
    end_couriers(root)
