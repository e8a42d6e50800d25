"""What autotuners have measured: by the real Triton, and from files that anybody wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.ranks import python_with_triton

from gpucache.kernels.autotune import Configuration, parse, tuning_result_in

MEASURED = {
    "key": [4096, "torch.float32"],
    "configs_timings": [
        [{"kwargs": {"BLOCK": 128}, "num_warps": 4, "maxnreg": None, "pre_hook": None}, [0.5, 0.4]],
        [{"kwargs": {"BLOCK": 256}, "num_warps": 8, "maxnreg": 64, "pre_hook": None}, [0.25, 0.2]],
        [{"kwargs": {"BLOCK": 512}, "num_warps": 8, "pre_hook": None}, [math.inf, math.inf]],
    ],
}

TUNE = """if True:
    import os, sys, triton, triton.language as tl
    os.environ["TRITON_CACHE_DIR"], module = sys.argv[1:]
    sys.path.insert(0, module)
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from gpucache.warm.replay.no_gpu import NoGpu
    driver.set_active(NoGpu(GPUTarget("cuda", 90, 32)))
    import tuned
    class Tensor:
        dtype = "torch.float32"
        def data_ptr(self): return 16
    try:
        tuned.scaled[(1,)](Tensor(), Tensor(), 4096)
    except AttributeError:  # the launch, for which there is no GPU
        print(getattr(tuned.scaled, "best_config", None))
"""
TUNED = """
import triton, triton.language as tl
timings = iter([[0.5, 0.4, 0.7], [float("inf")] * 3, [0.125, 0.1, 0.2]])
configs = [
    triton.Config({"BLOCK": 128}, num_warps=4),
    triton.Config({"BLOCK": 1 << 20}),
    triton.Config({"BLOCK": 64}, num_warps=1, num_stages=4, maxnreg=64),
]
kept = {} if triton.__version__ < "3.3" else {"cache_results": True}
measure = lambda call, quantiles: next(timings)
@triton.autotune(configs=configs, key=["n"], do_bench=measure, **kept)
@triton.jit
def scaled(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n), at < n)
"""


def test_what_the_real_triton_measured_is_read_with_its_winner(triton, tmp_path):
    version = python_with_triton("import triton; print(triton.__version__)")
    keeps = not version.startswith("3.2")  # which keeps no timings on disk
    (tmp_path / "tuned.py").write_text(TUNED)
    best = python_with_triton(TUNE, tmp_path / "cache", tmp_path)
    files = [*(tmp_path / "cache").glob("*/scaled.autotune.json")]
    assert len(files) == keeps
    if not keeps:
        return
    (file,) = files
    found = tuning_result_in(str(file.parent), "scaled")
    assert found is not None
    assert found.key == ("4096", "torch.float32", "torch.float32")
    assert [one.values for one in found.configurations] == [
        {"BLOCK": 128},
        {"BLOCK": 1 << 20},
        {"BLOCK": 64},
    ]
    assert [one.runs for one in found.configurations] == [True, False, True]
    assert found.winner.milliseconds == (0.125, 0.1, 0.2)
    assert found.winner.options == {"num_warps": 1, "num_ctas": 1, "num_stages": 4, "maxnreg": 64}
    assert best.startswith("BLOCK: 64, num_warps: 1")


def test_the_winner_is_the_fastest_and_of_equals_the_first():
    found = parse(json.dumps(MEASURED).encode())
    assert found.winner == Configuration(
        {"BLOCK": 256}, {"num_warps": 8, "maxnreg": 64}, (0.25, 0.2)
    )
    tied = {"configs_timings": [[{"num_warps": 2}, 1.0], [{"num_warps": 4}, 1]]}
    found = parse(json.dumps(tied).encode())
    assert found.winner == Configuration({}, {"num_warps": 2}, (1.0,))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"configs_timings": []}',
        b'{"configs_timings": 5}',
        b'{"configs_timings": [[{}]]}',
        b'{"configs_timings": [[[], [1.0]]]}',
        b'{"configs_timings": [[{"kwargs": 5}, [1.0]]]}',
        b'{"configs_timings": [[{}, []]]}',
        b'{"configs_timings": [[{}, [NaN]]]}',
        b'{"configs_timings": [[{}, [1' + b"0" * 400 + b"]]]}",
        b'{"configs_timings": [[{}, ["1"]]]}',
        b'{"configs_timings": [[{}, [true]]]}',
        b'{"key": 5, "configs_timings": [[{}, [1.0]]]}',
    ],
    ids=lambda data: data[:48].decode(errors="replace"),
)
def test_what_is_no_result_is_refused(data, tmp_path: Path):
    with pytest.raises(ValueError, match=r"."):
        parse(data)
    (tmp_path / "add.autotune.json").write_bytes(data)
    assert tuning_result_in(str(tmp_path), "add") is None
    assert tuning_result_in(str(tmp_path), "absent") is None
