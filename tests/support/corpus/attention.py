"""The sixth tutorial, small: attention with a scan over blocks, whose second half is a function of its own."""

import triton
import triton.language as tl
from corpus.arguments import F16, F32
from corpus.cases import case


@triton.jit
def _inner(
    total, sums, most, q, k, v, scale, first, stride, start, end,
    N_BLOCK: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, rows,
):  # fmt: skip
    inner = tl.arange(0, D)
    for at in range(start, end, N_BLOCK):
        at = tl.multiple_of(at, N_BLOCK)
        columns = at + tl.arange(0, N_BLOCK)
        keys = tl.load(k + first + columns[None, :] * stride + inner[:, None])
        weights = tl.dot(q, keys) * scale
        if CAUSAL:
            weights = tl.where(rows[:, None] >= columns[None, :], weights, -1.0e6)
        more = tl.maximum(most, tl.max(weights, 1))
        weights = tl.exp2(weights - more[:, None])
        less = tl.exp2(most - more)
        sums = sums * less + tl.sum(weights, 1)
        values = tl.load(v + first + columns[:, None] * stride + inner[None, :])
        total = tl.dot(weights.to(values.dtype), values, total * less[:, None])
        most = more
    return total, sums, most


@triton.jit
def attention(
    q, k, v, out, lse, scale, z_stride, stride, n,
    M_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr, D: tl.constexpr, STAGE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1).to(tl.int64) * z_stride
    rows = tl.program_id(0) * M_BLOCK + tl.arange(0, M_BLOCK)
    inner = tl.arange(0, D)
    at = first + rows[:, None] * stride + inner[None, :]
    most = tl.full([M_BLOCK], -1.0e6, dtype=tl.float32)
    sums = tl.zeros([M_BLOCK], dtype=tl.float32)
    total = tl.zeros([M_BLOCK, D], dtype=tl.float32)
    queries = tl.load(q + at)
    if STAGE & 1:
        end = tl.program_id(0) * M_BLOCK
        total, sums, most = _inner(
            total, sums, most, queries, k, v, scale, first, stride, 0, end, N_BLOCK, D, False, rows
        )
    if STAGE & 2:
        start = tl.program_id(0) * M_BLOCK
        total, sums, most = _inner(
            total, sums, most, queries, k, v, scale, first, stride, start, start + M_BLOCK,
            N_BLOCK, D, True, rows,
        )  # fmt: skip
    tl.store(lse + rows, most + tl.log2(sums))
    tl.store(out + at, (total / sums[:, None]).to(out.dtype.element_ty))


@case("attention, causal")
def causal():
    attention[(4, 4)](
        F16, F16, F16, F16, F32, 0.5, 4096, 32, 128, M_BLOCK=32, N_BLOCK=16, D=32, STAGE=3
    )
