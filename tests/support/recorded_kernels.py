"""Kernels of which `ask_recipes.py` asks for recipes: each kind of argument, constant, option and global there is."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

import triton
import triton.language as tl

LIMIT = tl.constexpr(4)
PLAIN: tl.constexpr = 3
OTHER: tl.constexpr = {1, 2}


class Mode(enum.IntEnum):
    FAST = 1


@dataclasses.dataclass(frozen=True)
class Tile:
    rows: int
    columns: object = None
    area: int = dataclasses.field(init=False, default=0)


class Pair(NamedTuple):
    first: object
    second: object


@triton.jit
def helper(x):
    return x + PLAIN


@triton.jit
def plain(x, y, n, B: tl.constexpr):
    tl.store(x, helper(tl.load(y)) + n + LIMIT)


@triton.jit
def annotated(x, n: tl.int32, WORD: tl.constexpr):
    tl.store(x, n)


@triton.jit
def tuples(x, t, B: tl.constexpr):
    tl.store(x, t[0])


@triton.jit
def reads_a_set(x, B: tl.constexpr):
    tl.store(x, OTHER)


if hasattr(triton, "constexpr_function"):

    @triton.constexpr_function
    def doubled(x):
        return 2 * x


try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
except ImportError:
    gluon = None

if gluon is not None:
    BLOCKED = gl.BlockedLayout([1], [32], [4], [0])

    @gluon.jit
    def of_gluon(x, B: gl.constexpr, LAYOUT: gl.constexpr):
        offsets = gl.arange(0, B, layout=LAYOUT)
        gl.store(x + offsets, offsets)


def inside():
    """A kernel that is made inside a function."""

    @triton.jit
    def inner(x, B: tl.constexpr):
        tl.store(x, B)

    return inner
