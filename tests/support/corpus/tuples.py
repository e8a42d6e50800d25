"""Tuples as arguments: of tensors, integers, constants, functions and tuples."""

from typing import NamedTuple

import triton
import triton.language as tl
from corpus.arguments import F16, F32, ODD
from corpus.cases import case
from corpus.helpers import double, square


class Strided(NamedTuple):
    base: object
    stride: object


class Pair(NamedTuple):
    left: Strided
    right: Strided


@triton.jit
def added(tensors, sizes, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < sizes[0]
    tl.store(tensors[0] + offsets, tl.load(tensors[1] + offsets * sizes[1], mask), mask)


@case("a tuple of tensors and one of integers", since=(3, 4))
def flat():
    added[(1,)]((F32, F32), (64, 3), BLOCK=64)


@case("a tuple with an integer that is 1, and an address that 16 does not divide", since=(3, 4))
def specialized():
    added[(1,)]((F32, ODD), (64, 1), BLOCK=64)


@triton.jit
def deep(values, out, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(values[0][0] + offsets) + values[1][1][0] + values[2])


@case("a tuple of tuples, with a constant", since=(3, 4))
def nested():
    deep[(1,)](((F32,), (None, (5, 16)), tl.constexpr(3)), F32, BLOCK=64)


@triton.jit
def by_name(pair, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(pair.left.base + offsets * pair.left.stride, offsets < n)
    tl.store(pair.right.base + offsets * pair.right.stride, value, offsets < n)


@case("a named tuple of named tuples", since=(3, 4))
def named():
    by_name[(1,)](Pair(Strided(F16, 1), Strided(F32, 16)), 60, BLOCK=64)


@triton.jit
def applied(x, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, FUNCTION(tl.load(x + offsets)))


@case("a function as constant", since=(3, 4))
def function():
    applied[(1,)](F32, FUNCTION=square, BLOCK=64)


@case("a function of Triton as constant", since=(3, 4))
def of_triton():
    applied[(1,)](F32, FUNCTION=tl.sigmoid, BLOCK=64)


@triton.jit
def composed(x, functions, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets)
    for index in tl.static_range(len(functions)):
        value = functions[index](value)
    tl.store(x + offsets, value)


@case("a tuple of functions", since=(3, 4))
def functions():
    composed[(1,)](F32, (square, double), BLOCK=64)


@case("a constant tuple of functions", since=(3, 4))
def constant_functions():
    constant_composed[(1,)](F32, FUNCTIONS=(double, square), BLOCK=64)


@triton.jit
def constant_composed(x, FUNCTIONS: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, FUNCTIONS[1](FUNCTIONS[0](tl.load(x + offsets))))
