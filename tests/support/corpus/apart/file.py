"""A kernel in a directory that is no package, as programs have that load files by their paths."""

import triton
import triton.language as tl


@triton.jit
def kernel(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 45)
