"""TileLang compiles one kernel for the processor, as C, which the compilers count."""

import tilelang
import tilelang.language as tl
import torch
from tilelang.cpu.language import Kernel


@tl.prim_func
def double_in_a_test(A: tl.Tensor((16,), "float32"), B: tl.Tensor((16,), "float32")):
    with Kernel(1):
        for i in tl.serial(16):
            B[i] = A[i] * 2.0


kernel = tilelang.compile(double_in_a_test, target="c", execution_backend="cython", out_idx=[1])
assert kernel(torch.ones(16)).tolist() == [2.0] * 16
print("{}")
