"""Let the real TorchInductor generate and compile kernels for an H100 where there is no GPU, and no CUDA in torch.

``python inductor_kernel.py`` compiles graphs of fake tensors on the device ``cuda``: what torch asks of the device is
answered here, as torch 2.13.0 asks it. It prints a JSON list of the modules that were generated.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in this process, where the device is made up
warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch._dynamo.device_interface import CudaInterface  # noqa: E402
from torch._guards import TracingContext, tracing  # noqa: E402
from torch._inductor.compile_fx import compile_fx_inner  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402
from torch._inductor.runtime import triton_helpers  # noqa: E402
from torch._inductor.runtime.triton_heuristics import CachingAutotuner  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from stand_in import stand_in, target_of  # noqa: E402  # isort: skip

H100 = types.SimpleNamespace(
    name="NVIDIA H100",
    type="cuda",
    index=0,
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block_optin=232448,
    warp_size=32,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
)


def make_up_device() -> None:
    """Answer what torch asks of the GPU while it generates and compiles."""
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    for place in (torch.cuda, CudaInterface, CudaInterface.Worker):
        place.get_device_properties = staticmethod(lambda *_: H100)
        place.current_device = staticmethod(lambda: 0)
    CudaInterface.get_compute_capability = staticmethod(lambda *_: 90)
    CudaInterface.is_available = staticmethod(lambda: True)
    CudaInterface.get_raw_stream = staticmethod(lambda device: 0)
    CudaInterface.synchronize = staticmethod(lambda *_: None)
    CudaInterface.raise_if_triton_unavailable = staticmethod(lambda *_: None)
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    triton_helpers.set_driver_to_gpu = lambda: None  # the stand-in is there
    CachingAutotuner._make_launchers = lambda tuner: None  # nothing is launched


def pointwise(x: Any, y: Any) -> Any:
    return (torch.tanh(x) * y + 1.5,)


def reduction(x: Any, y: Any) -> Any:
    return (torch.sigmoid(x) + y).sum(-1), torch.softmax(x * y, -1)


def normalised(x: Any, y: Any) -> Any:
    return (torch.nn.functional.layer_norm(x, (1024,)) * y.amax(0),)


def compile_graph(function: Callable[..., Any]) -> None:
    """Trace a function of two matrices, and have TorchInductor compile the graph."""
    mode = FakeTensorMode()
    with mode:
        words = [torch.empty(64, 1024, device="cuda") for _ in range(2)]
        graph = make_fx(function, decomposition_table=select_decomp_table())(*words)
    with tracing(TracingContext(mode)), mode:
        compile_fx_inner(graph, words)


def main() -> None:
    stand_in(target_of("sm_90"))
    make_up_device()
    modules: set[str] = set()
    precompile = CachingAutotuner._precompile_config

    def noted(tuner: Any, config: Any) -> Any:
        modules.add(tuner.fn.__module__)
        return precompile(tuner, config)

    CachingAutotuner._precompile_config = noted
    for function in (pointwise, reduction, normalised):
        compile_graph(function)
    sys.stdout.write(json.dumps(sorted(modules)) + "\n")


if __name__ == "__main__":
    main()
