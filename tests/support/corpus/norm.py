"""The layer norm and dropout of the tutorials: helpers that are not inlined, atomics, random numbers, a library."""

import triton
import triton.language as tl
from corpus import helpers
from corpus.arguments import F16, F32, I32
from corpus.cases import case
from corpus.helpers import moments

try:
    from triton.language.extra import libdevice
except ImportError:
    libdevice = None


@triton.jit
def layer_norm(x, out, weight, bias, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0) * stride
    offsets = tl.arange(0, BLOCK)
    mask = offsets < n
    value = tl.load(x + row + offsets, mask=mask, other=0.0).to(tl.float32)
    mean, variance = moments(value, mask, n)
    scale = helpers.inverse_root(variance + eps)
    value = (value - mean) * scale * tl.load(weight + offsets, mask) + tl.load(bias + offsets, mask)
    tl.store(out + row + offsets, value, mask)


@case("layer norm, helpers of another module, one not inlined")
def normed():
    layer_norm[(8,)](F16, F16, F32, F32, 768, 700, 1e-5, BLOCK=256)


@triton.jit
def locked(x, locks, count, BLOCK: tl.constexpr):
    lock = locks + tl.program_id(0) % 4
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + tl.load(count))
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@case("a lock in memory")
def lock():
    locked[(8,)](F32, I32, F32, BLOCK=64)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    keep = tl.rand(seed, offsets) > p
    tl.store(out + offsets, tl.where(keep, tl.load(x + offsets, mask) / (1 - p), 0.0), mask)


@case("dropout")
def dropped():
    dropout[(4,)](F32, F32, 1000, 0.5, 123, BLOCK=128)


@triton.jit
def arc_sine(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, libdevice.asin(tl.load(x + offsets, mask)), mask)


@case("a function of libdevice")
def library():
    arc_sine[(4,)](F32, F32, 1000, BLOCK=128)


@case("libdevice, named by its path", backends=("cuda",))
def named_library():
    from triton.backends.nvidia import compiler

    path = compiler.__file__.replace("compiler.py", "lib/libdevice.10.bc")
    arc_sine[(4,)](F32, F32, 1000, BLOCK=64, extern_libs={"libdevice": path})
