"""The first tutorial: two vectors; and every way in which an integer or an address is specialised."""

import triton
import triton.language as tl
from corpus.arguments import F16, F32, ODD
from corpus.cases import case


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask) + tl.load(y + offsets, mask), mask)


@case("vector add")
def divisible():
    add[(4,)](F32, F32, F32, 1024, BLOCK=128)


@case("an odd integer")
def odd():
    add[(4,)](F32, F32, F32, 1023, BLOCK=128)


@case("an integer that is 1")
def one():
    add[(1,)](F32, F32, F32, 1, BLOCK=128)


@case("an integer of 64 bits")
def long():
    add[(4,)](F32, F32, F32, 1 << 40, BLOCK=128)


@case("an integer of 64 bits without sign")
def unsigned():
    add[(4,)](F32, F32, F32, (1 << 63) + 16, BLOCK=128)


@case("an address that 16 does not divide")
def unaligned():
    add[(4,)](ODD, F32, ODD, 1024, BLOCK=128)


@case("types that differ")
def mixed():
    add[(4,)](F16, F32, F32, 1024, BLOCK=128, num_warps=8)
