"""Kernels by where they are: in a class, behind decorators, under another name, made by a function or from a text."""

import functools
import linecache

import triton
import triton.language as tl
from corpus.arguments import F32
from corpus.cases import case
from corpus.deep import inner
from corpus.deep import reexported as other_name


class Holder:
    @staticmethod
    @triton.jit
    def kernel(x, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(x + offsets, tl.load(x + offsets) + 21)


@case("a kernel in a class")
def in_class():
    Holder.kernel[(1,)](F32, BLOCK=64)


def _renamed(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 22)


fast = triton.jit(_renamed)


@case("a kernel whose name is that of the function below")
def renamed():
    fast[(1,)](F32, BLOCK=64)


def _held(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 23)


HELD = {"kernels": [triton.jit(_held)]}


@case("a kernel that only a dictionary holds")
def in_dictionary():
    HELD["kernels"][0][(1,)](F32, BLOCK=64)


def launched(kernel):
    """A decorator of its own, as libraries have them, which hides the kernel behind a function."""

    @functools.wraps(kernel.fn)
    def launch(*arguments, **constants):
        return kernel[(1,)](*arguments, **constants)

    launch.kernel = kernel
    return launch


@launched
@triton.jit
def wrapped(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 24)


@case("a kernel behind a decorator of the library")
def behind():
    wrapped(F32, BLOCK=64)


@case("a kernel of a package in the package")
def in_submodule():
    inner.kernel[(1,)](F32, BLOCK=64)


@case("a kernel that another module passes on")
def passed_on():
    other_name[(1,)](F32, BLOCK=128)


@triton.jit
def twice(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 25)


first_of_two = twice


@triton.jit
def twice(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 26)


@case("a kernel whose name another one took")
def shadowed():
    first_of_two[(1,)](F32, BLOCK=64)
    twice[(1,)](F32, BLOCK=64)


def make(number):
    @triton.jit
    def made(x, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(x + offsets, tl.load(x + offsets) + 27)

    return made


@case("a kernel that a function makes")
def closure():
    make(1)[(1,)](F32, BLOCK=64)


TEXT = """
import triton
import triton.language as tl


@triton.jit
def generated(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 28)
"""


@case("a kernel made from a text")
def from_text():
    name = "<corpus>"
    linecache.cache[name] = (len(TEXT), None, TEXT.splitlines(True), name)
    space = {"__name__": "corpus.generated"}
    exec(compile(TEXT, name, "exec"), space)
    space["generated"][(1,)](F32, BLOCK=64)
