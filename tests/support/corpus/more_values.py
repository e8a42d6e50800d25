"""More values of arguments and constants: at the edges of types, in tuples, in enumerations, with annotated types."""

from __future__ import annotations

import enum

import triton
import triton.language as tl
from corpus.arguments import F32, I32, Tensor
from corpus.cases import VERSION, case


class Text(str, enum.Enum):
    LEFT = "left"


class Flags(enum.Flag):
    ONE = 1
    TWO = 2


class Outer:
    class Inner(enum.Enum):
        VALUE = 3


@triton.jit
def chosen(out, MODE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, 2.0)


@case("a constant of an enumeration of texts")
def text_enum():
    chosen[(1,)](F32, MODE=Text.LEFT, BLOCK=64)


@case("a constant of flags")
def flag():
    chosen[(1,)](F32, MODE=Flags.ONE | Flags.TWO, BLOCK=64)


@case("a constant of an enumeration in a class")
def inner_enum():
    chosen[(1,)](F32, MODE=Outer.Inner.VALUE, BLOCK=64)


@case("a constant text that is empty")
def empty_text():
    chosen[(1,)](F32, MODE="", BLOCK=64)


@case("a constant tuple that is empty", since=(3, 4))
def empty_tuple():
    chosen[(1,)](F32, MODE=(), BLOCK=64)


@case("a constant tuple of one type, one enumeration and no number", since=(3, 4))
def odd_tuple():
    chosen[(1,)](F32, MODE=(tl.int8, Text.LEFT, float("nan"), -0.0), BLOCK=64)


@triton.jit
def bounded(x, n, m, flag, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, offsets + m + flag, mask=offsets < n)


@case("the largest integer of 32 bits, and zero")
def largest():
    bounded[(1,)](F32, (1 << 31) - 1, 0, False, BLOCK=64)


@case("the smallest integer of 64 bits that 32 do not hold, and a negative one")
def larger():
    bounded[(1,)](F32, 1 << 31, -(1 << 31), True, BLOCK=64)


@case("the most negative integers")
def negative():
    bounded[(1,)](F32, -(1 << 31) - 1, -1, 1, BLOCK=64)


@triton.jit
def of_doubles(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(y + offsets).to(tl.float64), mask=offsets < n)


@case("doubles and small integers")
def doubles():
    of_doubles[(1,)](Tensor("float64"), Tensor("int16"), 64, BLOCK=64)


@case("a tensor whose type is read as another")
def reinterpreted():
    of_doubles[(1,)](Tensor("float64"), triton.reinterpret(I32, tl.float32), 64, BLOCK=64)


@triton.jit
def in_tuple(values, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    if values[1] is None:
        tl.store(values[0] + offsets, values[2])
    else:
        tl.store(values[0] + offsets, values[3])


@case("a tuple with None, a truth and a float", since=(3, 4))
def mixed():
    in_tuple[(1,)]((F32, None, True, 0.5), BLOCK=64)


@case("a tuple with a constant type and a constant text", since=(3, 4))
def constants():
    in_tuple[(1,)]((F32, tl.constexpr(tl.float16), tl.constexpr("x"), 7), BLOCK=64)


@case("a tuple with large integers", since=(3, 4))
def large():
    in_tuple[(1,)]((F32, 1 << 40, 1, 16), BLOCK=64)


@triton.jit
def with_defaults(x, n=64, *, SHIFT: tl.constexpr = 3, BLOCK: tl.constexpr = 64):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + SHIFT, mask=offsets < n)


@case("parameters that only names give, with defaults", since=(3, 9))
def by_name():
    with_defaults[(1,)](F32, SHIFT=4)


@case("all defaults", since=(3, 9))
def all_defaults():
    with_defaults[(1,)](F32)


@triton.jit
def many(x, *others, BLOCK: tl.constexpr = 64):
    offsets = tl.arange(0, BLOCK)
    total = tl.load(x + offsets)
    for index in tl.static_range(len(others)):
        total += tl.load(others[index] + offsets)
    tl.store(x + offsets, total)


@case("any number of arguments", since=(3, 9))
def any_number():
    many[(1,)](F32, F32, I32)


if VERSION >= (3, 9):
    from triton.tools.tensor_descriptor import TensorDescriptor

    @triton.jit
    def copied(x, out, ROWS: tl.constexpr):
        out.store([0, 0, 0], x.load([0, 0, 0]))

    @case("descriptors of three dimensions, one rounded", since=(3, 9))
    def rounded():
        said = {"shape": [8, 64, 64], "strides": [4096, 64, 1], "block_shape": [1, 16, 32]}
        one = TensorDescriptor(F32, **said, round_f32_to_tf32=True)
        copied[(1,)](one, TensorDescriptor(F32, **said), ROWS=16)
