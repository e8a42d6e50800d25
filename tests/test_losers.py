"""Which kernels are losers of a real autotuner, and that what cannot be told is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from support.ranks import PLUGIN, python_with_triton

from gpucache.kernels.description import describe
from gpucache.layout.paths import RECIPE
from gpucache.report.cache_report import scan
from gpucache.report.entries import Entry
from gpucache.upkeep.losers import losers

TUNE = """if True:
    import os, sys
    import triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from gpucache.warm.replay.no_gpu import NoGpu
    driver.set_active(NoGpu(GPUTarget("cuda", int(sys.argv[2]), 32)))
    sys.path.insert(0, sys.argv[1])
    import tuned
    class Tensor:
        def __init__(self, dtype): self.dtype = dtype
        def data_ptr(self): return 16
    try:
        tuned.scaled[(1,)](Tensor(sys.argv[3]), Tensor(sys.argv[3]), int(sys.argv[4]))
    except AttributeError:  # the launch, for which there is no GPU
        pass
"""
TUNED = """
import os
import triton, triton.language as tl
configs = [triton.Config({"BLOCK": 128}, num_warps=4), triton.Config({"BLOCK": 64}, num_warps=1, num_stages=4)]
configs += [triton.Config({"BLOCK": 64}, num_warps=2)]
timings = iter([[0.5, 0.4, 0.7], [0.125, 0.1, 0.2], [0.3, 0.2, 0.4]])
if os.environ.get("FIRST_WINS"):
    timings = iter([[0.1] * 3, [0.2] * 3, [0.3] * 3])
def measure(call, quantiles):
    try:
        call()
    except AttributeError:  # as above
        pass
    return next(timings)
kept = {} if os.environ.get("KEEPS_NO_RESULT") else {"cache_results": True}
@triton.autotune(configs=configs, key=["n"], do_bench=measure, **kept)
@triton.jit
def scaled(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n), at < n)
"""


class Tuning(NamedTuple):
    """A root in which kernels were tuned, and a directory with the module that has the kernel."""

    root: Path
    module: Path

    def tune(
        self,
        arch: int = 90,
        dtype: str = "torch.float32",
        n: int = 4096,
        env: Mapping[str, str] | None = None,
    ) -> None:
        environ = {**os.environ, **PLUGIN, "TRITON_CACHE_DIR": f"{self.root}/triton/0"}
        environ |= {"GPUCACHE_DIR": str(self.root), **(env or {})}
        python_with_triton(TUNE, self.module, arch, dtype, n, env=environ)

    def entries(self) -> tuple[Entry, ...]:
        return scan(str(self.root)).entries

    def losers(self) -> set[str]:
        """What the losers were compiled with."""
        return {_configuration(entry) for entry in losers(self.entries())}

    def kernels(self) -> list[Entry]:
        return [entry for entry in self.entries() if entry.kind == "kernel"]


def _configuration(entry: Entry) -> str:
    found = describe(entry.copies[0].path, entry.kernel)
    assert found is not None
    return f"BLOCK {found.constants['BLOCK']}, {found.warps} warps"


LOST = {"BLOCK 128, 4 warps", "BLOCK 64, 2 warps"}
WON = "BLOCK 64, 1 warps"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, triton_version: str) -> Tuning:
    """One tuning, which tests copy."""
    directory = tmp_path_factory.mktemp("tuned")
    module = directory / "module"
    module.mkdir()
    (module / "tuned.py").write_text(TUNED)
    made = Tuning(directory / "root", module)
    made.tune()
    return made


@pytest.fixture(scope="module")
def triton_version(triton: None) -> str:
    """The version of a Triton that keeps timings on disk."""
    version = python_with_triton("import triton; print(triton.__version__)").strip()
    if version.startswith("3.2"):
        pytest.skip("Triton 3.2 keeps no results of autotuners on disk")
    return version


@pytest.fixture
def tuning(once: Tuning, tmp_path: Path) -> Tuning:
    shutil.copytree(once.root, tmp_path / "root", symlinks=True)
    return Tuning(tmp_path / "root", once.module)


def test_what_was_measured_and_not_taken_are_losers(tuning):
    assert sorted(map(_configuration, tuning.kernels())) == sorted({*LOST, WON})
    assert tuning.losers() == LOST


def test_prune_takes_them_and_keeps_the_winner_and_the_result(tuning, here):
    done = here("prune", "--losers", "--grace", "20min", "--yes", "--root", tuning.root)
    assert "note: 2 more would go, but were used too recently" in done.err
    for path in tuning.root.rglob("__entry__.json"):
        os.utime(path, (1e9, 1e9))
    done = here("prune", "--losers", "--yes", "--root", tuning.root)
    assert [row[0] for row in done.rows] == ["remove"] * 2
    assert sorted(entry.kind for entry in tuning.entries()) == ["autotune", "kernel"]
    assert [_configuration(entry) for entry in tuning.kernels()] == [WON]
    done = here("prune", "--losers", "--yes", "--root", tuning.root)
    assert "note: no cached result of an autotuner tells of a loser here" in done.err


def test_without_a_result_nobody_has_lost(tuning):
    for path in tuning.root.rglob("scaled.autotune.json"):
        path.unlink()
    assert tuning.losers() == set()


def test_a_torn_result_tells_of_none(tuning):
    for path in tuning.root.rglob("scaled.autotune.json"):
        path.write_text(path.read_text()[:100])
    assert tuning.losers() == set()


def test_what_wins_for_other_values_is_no_loser(tuning):
    tuning.tune(n=8192, env={"FIRST_WINS": "1"})
    assert tuning.losers() == {"BLOCK 64, 2 warps"}


def test_kernels_of_types_that_were_not_tuned_are_none(tuning):
    tuning.tune(dtype="torch.float16", env={"KEEPS_NO_RESULT": "1"})
    assert len(tuning.kernels()) == 6
    lost = losers(tuning.entries())
    assert len(lost) == 2
    for entry in lost:
        found = describe(entry.copies[0].path, entry.kernel)
        assert found is not None
        assert found.dtypes["x"] == "*fp32"


def test_where_two_architectures_are_cached_none_is_told_apart(tuning):
    tuning.tune(arch=80, env={"KEEPS_NO_RESULT": "1"})
    assert tuning.losers() == set()


def test_a_kernel_without_a_recipe_is_none_nor_any_of_its_name(tuning):
    next(tuning.root.rglob(RECIPE)).unlink()
    assert tuning.losers() == set()


def test_a_configuration_with_another_constant_is_none(tuning):
    for path in tuning.root.rglob("scaled.autotune.json"):
        said = json.loads(path.read_text())
        for config, _ in said["configs_timings"]:
            config["kwargs"]["GROUP"] = None  # no kernel says that it was compiled with any
        path.write_text(json.dumps(said))
    assert tuning.losers() == set()
