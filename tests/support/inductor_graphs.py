"""Have TorchInductor compile graphs for a GPU that is not there: ``python inductor_graphs.py [TARGET]``.

The real `compile_fx` of torch (written for 2.13.0) lowers graphs of fake CUDA tensors, writes their Triton kernels as
modules and compiles each configuration of them, on the stand-in driver (`stand_in`); nothing is launched. What the CPU
build of torch asks of CUDA is answered here. Prints one JSON object: the key of each kernel asked for, and whether
that was a hit.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

warnings.simplefilter("ignore")
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch  # noqa: E402
import triton  # noqa: E402

from stand_in import stand_in, target_of  # noqa: E402  # isort: skip

TARGET = target_of(sys.argv[1] if sys.argv[1:] else "sm_90")


def answer_for_cuda() -> None:
    """Answer what Inductor asks of CUDA while it compiles; before Inductor is imported, which keeps the functions."""
    major, minor = divmod(TARGET.arch, 10)
    properties = types.SimpleNamespace(
        name="NVIDIA H100",
        major=major,
        minor=minor,
        multi_processor_count=132,
        total_memory=80 << 30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        warp_size=32,
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": (major, minor),
        "get_device_name": properties.name,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    for name in ("_lazy_init", "set_rng_state", "set_device", "synchronize"):
        answers[name] = None
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch._C._cuda_getCurrentRawStream = lambda _: 0


def do_without_gpu() -> None:
    """Leave out of Inductor what runs on a GPU: the driver, patterns that are traced on tensors, torch's launcher."""
    from torch._inductor import config
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.runtime import triton_helpers

    triton_helpers.set_driver_to_gpu = lambda: None
    for passes in (joint_graph, post_grad):
        passes.lazy_init = lambda *_: None
    config.pattern_matcher = False
    config.use_static_triton_launcher = False


def fused(x: Any, y: Any, weight: Any) -> Any:
    """A softmax and a layer norm: a reduction that is held."""
    value = torch.softmax(torch.nn.functional.gelu(x * 2 + y), -1)
    return value.sum(-1), torch.nn.functional.layer_norm(value, value.shape[-1:], weight, weight)


def pointwise(x: Any, y: Any, weight: Any) -> Any:
    return (x + weight).relu() * y.to(torch.float16).sin()


def turned(x: Any, y: Any, weight: Any) -> Any:
    """A transposition, with blocks of two dimensions."""
    return (x.t() * 2 + y.t()).reshape(-1), weight.flip(0)


def reduced(x: Any, y: Any, weight: Any) -> Any:
    """Reductions over all, with several configurations, in two kernels."""
    return (x * y).sum(), x.argmax(0), y.var()


GRAPHS: tuple[Callable[..., Any], ...] = (fused, pointwise, turned, reduced)


@contextmanager
def asked_for() -> Iterator[list[dict[str, Any]]]:
    """What Triton's listener hears."""
    seen: list[dict[str, Any]] = []

    def listen(*, src: Any, metadata: Any, cache_hit: bool, **_: Any) -> None:
        digest = metadata["hash"]
        key = triton.runtime.cache.get_cache_manager(digest).key
        module = src.fn.__module__
        seen.append({"kernel": src.name, "module": module, "key": key, "hit": cache_hit})

    triton.knobs.compilation.listener = listen
    yield seen
    triton.knobs.compilation.listener = None


def main() -> None:
    stand_in(TARGET)
    answer_for_cuda()
    do_without_gpu()
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with asked_for() as seen, FakeTensorMode(allow_non_fake_inputs=True):
        shapes = ((64, 3000), (64, 3000), (3000,))
        inputs = [torch.empty(shape, device="cuda") for shape in shapes]
        for graph in GRAPHS:
            compile_fx(make_fx(graph, tracing_mode="fake")(*inputs), inputs)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
