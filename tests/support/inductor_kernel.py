"""Compile a module as TorchInductor generates it, as TorchInductor's own compile worker does, without a GPU.

``python inductor_kernel.py`` prints the path of the module's file. The text follows what `torch/_inductor/codegen/
triton.py` of torch 2.13.0 writes for one pointwise kernel on an H100; all the rest is the real torch.
"""

from __future__ import annotations

import functools
import sys

NAME = "triton_poi_fused_tanh_0"
SOURCE = f"""
import triton
import triton.language as tl

from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
from torch._inductor.runtime.hints import AutotuneHint, ReductionHint, TileHint, DeviceProperties
triton_helpers.set_driver_to_gpu()

@triton_heuristics.pointwise(
    size_hints={{'x': 1024}},
    filename=__file__,
    triton_meta={{
        'signature': {{'in_ptr0': '*fp32', 'out_ptr0': '*fp32', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}},
        'device': DeviceProperties(
            type='cuda', index=0, multi_processor_count=132, cc=90, major=9,
            regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32,
        ),
        'constants': {{}},
        'configs': [{{(0,): [['tt.divisibility', 16]], (1,): [['tt.divisibility', 16]], (2,): []}}],
    }},
    inductor_meta={{
        'grid_type': 'Grid1D', 'autotune_hints': set(), 'kernel_name': '{NAME}',
        'mutated_arg_names': [], 'optimize_mem': True, 'no_x_dim': False, 'num_load': 1,
        'num_reduction': 0, 'backend_hash': 'none',
    }},
    min_elem_per_thread=0
)
@triton.jit
def {NAME}(in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    xoffset = tl.program_id(0) * XBLOCK
    xindex = xoffset + tl.arange(0, XBLOCK)[:]
    xmask = xindex < xnumel
    x0 = xindex
    tmp0 = tl.load(in_ptr0 + (x0), xmask)
    tmp1 = libdevice.tanh(tmp0)
    tl.store(out_ptr0 + (x0), tmp1, xmask)
"""


def main() -> None:
    from torch._inductor.async_compile import _load_triton_kernel_from_source
    from torch._inductor.runtime import compile_tasks, triton_helpers

    triton_helpers.set_driver_to_gpu = lambda: None  # there is none, and a compile needs none
    load = functools.partial(_load_triton_kernel_from_source, NAME, SOURCE)
    kernel, _ = compile_tasks._worker_compile_triton(load, {}, {})
    sys.stdout.write(f"{kernel.fn.__module__}\n")


if __name__ == "__main__":
    main()
