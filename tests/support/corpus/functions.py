"""Constexpr functions, which run while a kernel is compiled; and functions of a scan, a reduction, a sort."""

import triton
import triton.language as tl
from corpus.arguments import F32, I32
from corpus.cases import VERSION, case

if VERSION >= (3, 4):
    constexpr_function = getattr(triton, "constexpr_function", None) or tl.core.constexpr_function

    @constexpr_function
    def next_even(value):
        return value + value % 2

    @triton.jit
    def padded(x, N: tl.constexpr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(x + offsets, tl.load(x + offsets) * next_even(N))

    @case("a constexpr function")
    def computed():
        padded[(1,)](F32, N=5, BLOCK=64)

    @triton.jit
    def applied(x, FUNCTION: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(x + offsets, tl.load(x + offsets) * FUNCTION(N))

    @case("a constexpr function as constant")
    def given():
        applied[(1,)](F32, FUNCTION=next_even, N=5, BLOCK=64)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def pairs(a, b, c, d):
    return a + c, tl.maximum(b, d)


@triton.jit
def scanned(x, out, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets)
    tl.store(out + offsets, tl.associative_scan(value, 0, larger))
    total, most = tl.reduce((value, value), 0, pairs)
    tl.store(out + BLOCK, total + most)


@case("a scan and a reduction by functions of the module")
def scan():
    scanned[(1,)](F32, F32, BLOCK=64)


@triton.jit
def sorted_rows(x, out, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets)
    tl.store(out + offsets, tl.sort(value) + tl.cumsum(value, 0) + tl.flip(value, 0))


@case("functions of Triton's library")
def library():
    sorted_rows[(1,)](I32, I32, BLOCK=32)


@triton.jit
def assembled(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets)
    value = tl.inline_asm_elementwise(
        "shl.b32 $0, $1, 3;", "=r,r", [value], dtype=tl.int32, is_pure=True, pack=1
    )
    tl.store(x + offsets, value)


@case("assembler in a kernel", backends=("cuda",))
def assembler():
    assembled[(1,)](I32, BLOCK=64)


@triton.jit
def printed(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.static_assert(BLOCK == 64)
    value = tl.load(x + offsets)
    tl.device_print("value", value)
    tl.store(x + offsets, value + 1)


@case("a kernel that prints")
def printing():
    printed[(1,)](I32, BLOCK=64)
