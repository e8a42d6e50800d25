"""The second tutorial: a softmax by rows, in a loop whose stages are an argument."""

import triton
import triton.language as tl
from corpus.arguments import BF16, F32
from corpus.cases import case


@triton.jit
def softmax(
    out, x, x_stride, out_stride, rows, columns, BLOCK: tl.constexpr, num_stages: tl.constexpr
):
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=num_stages):
        offsets = tl.arange(0, BLOCK)
        mask = offsets < columns
        value = tl.load(x + row * x_stride + offsets, mask=mask, other=-float("inf")).to(tl.float32)
        value = tl.exp(value - tl.max(value, axis=0))
        value = value / tl.sum(value, axis=0)
        tl.store(out + row * out_stride + offsets, value, mask=mask)


@case("softmax")
def fused():
    softmax[(4,)](F32, F32, 781, 781, 1823, 781, BLOCK=256, num_stages=2, num_warps=8)


@case("softmax, bfloat16")
def half():
    softmax[(4,)](BF16, BF16, 1024, 1024, 64, 1024, BLOCK=256, num_stages=4)
