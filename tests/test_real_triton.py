"""A real Triton compile lands in the provisioned directory of its device: alone, masked, and under real launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ranks import ONE_KERNEL

RUN = [sys.executable, "-m", "gpucache", "run"]

pytestmark = pytest.mark.usefixtures("triton")


@pytest.fixture
def eight(tmp_path):
    return {
        **os.environ,
        "GPUCACHE_FAKE_DEVICES": "8xH100:9.0",
        "GPUCACHE_DIR": str(tmp_path / "root"),
    }


def compiled(command: list[str], env: dict[str, str]) -> list[dict[str, object]]:
    """What each process that ran the script said."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def kernels(root: Path) -> dict[str, list[str]]:
    """Which kernels have a whole entry in which device directory."""
    found: dict[str, list[str]] = {}
    for cubin in sorted(root.glob("triton/*/*/*.cubin")):
        found.setdefault(cubin.parent.parent.name, []).append(cubin.stem)
    return found


def test_a_compile_lands_in_its_devices_directory_and_the_next_run_hits_it(eight, tmp_path):
    command = [*RUN, "--device", "2", "--", sys.executable, str(ONE_KERNEL)]
    (first,) = compiled(command, eight)
    assert first["TRITON_CACHE_DIR"] == str(tmp_path / "root" / "triton" / "2")
    assert first["hit"] is False
    assert kernels(tmp_path / "root") == {"2": ["add"]}
    (second,) = compiled(command, eight)
    assert second["hit"] is True
    assert second["hash"] == first["hash"]


def test_a_masked_compile_lands_in_the_same_directory_as_the_launcher_names(eight, tmp_path):
    (said,) = compiled(
        [*RUN, "--", sys.executable, str(ONE_KERNEL)], {**eight, "CUDA_VISIBLE_DEVICES": "5"}
    )
    assert said["GPUCACHE_DEVICE"] == "FAKE-5"
    assert kernels(tmp_path / "root") == {"5": ["add"]}


def test_the_fake_nvml_machine_gives_real_uuids(machine, tmp_path):
    environ = {
        **machine("h100x4"),
        "GPUCACHE_DIR": str(tmp_path / "root"),
        "CUDA_VISIBLE_DEVICES": "GPU-e4",
    }
    (said,) = compiled([*RUN, "--", sys.executable, str(ONE_KERNEL)], environ)
    assert said["GPUCACHE_DEVICE"] == "GPU-e429a63e-c61c-4795-b757-5132caeb8e70"
    assert kernels(tmp_path / "root") == {"2": ["add"]}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("mask", "directories"), [(None, "0123"), ("7,6,5,4", "7654")], ids=["unmasked", "masked"]
)
def test_each_rank_of_torchrun_compiles_into_its_own_devices_directory(
    mask, directories, eight, tmp_path
):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=4",
        "--no-python",
    ]
    environ = eight if mask is None else {**eight, "CUDA_VISIBLE_DEVICES": mask}
    ranks = compiled([*torchrun, *RUN, "--", sys.executable, str(ONE_KERNEL)], environ)
    where = {rank["LOCAL_RANK"]: Path(str(rank["TRITON_CACHE_DIR"])).name for rank in ranks}
    assert where == dict(zip("0123", directories, strict=True))
    assert kernels(tmp_path / "root") == {name: ["add"] for name in sorted(directories)}


@pytest.mark.torch
def test_in_front_of_torchrun_it_sets_the_root_and_the_inner_run_the_device(eight, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
    ]
    ranks = compiled([*RUN, "--", *torchrun, *RUN, "--", sys.executable, str(ONE_KERNEL)], eight)
    assert sorted(Path(str(rank["TRITON_CACHE_DIR"])).name for rank in ranks) == ["0", "1"]
