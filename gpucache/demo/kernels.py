"""Twelve Triton kernels as a model has them, each with the types and constants with which a rank compiles it.

Nothing here is launched: a compile needs no GPU. The only module beside `gpucache.warm.replay` that imports Triton.
No annotation is put off (``from __future__``), since Triton reads them.
"""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    """Add two vectors."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, inside) + tl.load(y + at, inside), inside)


@triton.jit
def gelu(x, out, n, BLOCK: tl.constexpr):
    """The activation GELU, by its approximation with a sigmoid."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, inside).to(tl.float32)
    tl.store(out + at, value / (1 + tl.exp(-1.702 * value)), inside)


@triton.jit
def swiglu(gate, up, out, n, BLOCK: tl.constexpr):
    """The gated activation SwiGLU."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(gate + at, inside).to(tl.float32)
    tl.store(out + at, value / (1 + tl.exp(-value)) * tl.load(up + at, inside), inside)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    """Set a random part of a vector to zero."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, inside)
    kept = tl.rand(seed, at) > p
    tl.store(out + at, tl.where(kept, value / (1 - p), 0.0), inside)


@triton.jit
def softmax(x, out, stride, n, BLOCK: tl.constexpr):
    """The softmax of each row."""
    row = tl.program_id(0) * stride
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row + at, inside, other=-float("inf")).to(tl.float32)
    powers = tl.exp(value - tl.max(value, 0))
    tl.store(out + row + at, powers / tl.sum(powers, 0), inside)


@triton.jit
def cross_entropy(logits, labels, losses, stride, n, BLOCK: tl.constexpr):
    """The loss of each row of logits."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    value = tl.load(logits + row * stride + at, at < n, other=-float("inf")).to(tl.float32)
    most = tl.max(value, 0)
    total = tl.log(tl.sum(tl.exp(value - most), 0)) + most
    chosen = tl.load(logits + row * stride + tl.load(labels + row)).to(tl.float32)
    tl.store(losses + row, total - chosen)


@triton.jit
def layer_norm(x, weight, bias, out, stride, n, eps, BLOCK: tl.constexpr):
    """Normalise each row by its mean and variance."""
    row = tl.program_id(0) * stride
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row + at, inside, other=0.0).to(tl.float32)
    off = tl.where(inside, value - tl.sum(value, 0) / n, 0.0)
    scaled = off * tl.rsqrt(tl.sum(off * off, 0) / n + eps)
    tl.store(
        out + row + at, scaled * tl.load(weight + at, inside) + tl.load(bias + at, inside), inside
    )


@triton.jit
def rms_norm(x, weight, out, stride, n, eps, BLOCK: tl.constexpr):
    """Normalise each row by its root mean square."""
    row = tl.program_id(0) * stride
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row + at, inside, other=0.0).to(tl.float32)
    scaled = value * tl.rsqrt(tl.sum(value * value, 0) / n + eps)
    tl.store(out + row + at, scaled * tl.load(weight + at, inside), inside)


@triton.jit
def rope(x, cos, sin, stride, HALF: tl.constexpr):
    """Rotate the two halves of each row by its position."""
    row = tl.program_id(0)
    at = tl.arange(0, HALF)
    first = tl.load(x + row * stride + at)
    second = tl.load(x + row * stride + HALF + at)
    c = tl.load(cos + row * HALF + at)
    s = tl.load(sin + row * HALF + at)
    tl.store(x + row * stride + at, first * c - second * s)
    tl.store(x + row * stride + HALF + at, second * c + first * s)


@triton.jit
def quantize(x, out, scales, stride, n, BLOCK: tl.constexpr):
    """Each row as bytes and one scale."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + row * stride + at, inside, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(value), 0) / 127
    tl.store(scales + row, scale)
    tl.store(out + row * stride + at, (value / scale).to(tl.int8), inside)


@triton.jit
def adam(weight, gradient, mean, square, n, rate, BLOCK: tl.constexpr):
    """One step of the optimiser Adam."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    slope = tl.load(gradient + at, inside)
    first = 0.9 * tl.load(mean + at, inside) + 0.1 * slope
    second = 0.999 * tl.load(square + at, inside) + 0.001 * slope * slope
    tl.store(mean + at, first, inside)
    tl.store(square + at, second, inside)
    step = rate * first / (tl.sqrt(second) + 1e-8)
    tl.store(weight + at, tl.load(weight + at, inside) - step, inside)


@triton.jit
def matmul(a, b, out, k, stride, TILE: tl.constexpr, TILE_K: tl.constexpr):
    """One tile of a product of matrices, which have a whole number of tiles."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for begin in range(0, k, TILE_K):
        steps = begin + tl.arange(0, TILE_K)
        left = tl.load(a + rows[:, None] * stride + steps[None, :])
        right = tl.load(b + steps[:, None] * stride + columns[None, :])
        total += tl.dot(left, right)
    tl.store(out + rows[:, None] * stride + columns[None, :], total.to(tl.float16))


KERNELS = (
    (matmul, "*fp16 *fp16 *fp16 i32 i32", {"TILE": 64, "TILE_K": 32}),
    (softmax, "*fp16 *fp16 i32 i32", {"BLOCK": 4096}),
    (layer_norm, "*fp16 *fp16 *fp16 *fp16 i32 i32 fp32", {"BLOCK": 4096}),
    (rms_norm, "*fp16 *fp16 *fp16 i32 i32 fp32", {"BLOCK": 4096}),
    (cross_entropy, "*fp16 *i64 *fp32 i32 i32", {"BLOCK": 4096}),
    (rope, "*fp16 *fp16 *fp16 i32", {"HALF": 64}),
    (swiglu, "*fp16 *fp16 *fp16 i32", {"BLOCK": 1024}),
    (gelu, "*fp16 *fp16 i32", {"BLOCK": 1024}),
    (dropout, "*fp32 *fp32 i32 fp32 i32", {"BLOCK": 1024}),
    (quantize, "*fp16 *i8 *fp32 i32 i32", {"BLOCK": 4096}),
    (adam, "*fp32 *fp32 *fp32 *fp32 i32 fp32", {"BLOCK": 1024}),
    (add, "*fp32 *fp32 *fp32 i32", {"BLOCK": 1024}),
)
"""Each kernel, the types of its arguments in their order, and its constants."""
