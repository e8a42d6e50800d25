"""Every kind of value that a kernel takes as a constant, or as an argument that is none of a tensor or an integer."""

import dataclasses
import enum
from typing import NamedTuple

import triton
import triton.language as tl
from corpus.arguments import F32, I32
from corpus.cases import case

SCALE = tl.constexpr(3)
TYPE = tl.constexpr(tl.float16)
INFINITE = tl.constexpr(float("inf"))


class Mode(enum.IntEnum):
    FAST = 1
    SLOW = 2


class Kind(enum.Enum):
    ADD = "add"


class Sizes(NamedTuple):
    rows: int
    columns: int


@triton.jit
def store(out, VALUE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.full((BLOCK,), VALUE, tl.float32))


def kept(value):
    return lambda: store[(1,)](F32, VALUE=value, BLOCK=64)


case("a constant float")(kept(0.1))
case("a constant that is not a number")(kept(float("nan")))
case("a constant that is infinite")(kept(float("inf")))
case("a constant that is infinite and negative")(kept(-float("inf")))
case("a constant zero that is negative")(kept(-0.0))
case("a constant integer that is large")(kept((1 << 62) + 1))
case("a constant integer that is negative")(kept(-7))
case("a constant truth")(kept(True))
case("a constant in a constexpr", since=(3, 3))(kept(tl.constexpr(5)))
case("a constant float in a constexpr", since=(3, 3))(kept(tl.constexpr(2.0)))


@triton.jit
def chosen(out, MODE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    if MODE is None:
        tl.store(out + offsets, 0.0)
    else:
        tl.store(out + offsets, 1.0)


@case("a constant that is None")
def none_constant():
    chosen[(1,)](F32, MODE=None, BLOCK=64)


@case("a constant text")
def text():
    chosen[(1,)](F32, MODE='é\n"quoted"', BLOCK=64)


@case("a constant of an enumeration of integers")
def int_enum():
    chosen[(1,)](F32, MODE=Mode.SLOW, BLOCK=64)


@case("a constant of an enumeration")
def plain_enum():
    chosen[(1,)](F32, MODE=Kind.ADD, BLOCK=64)


@triton.jit
def cast(x, out, TO: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets).to(TO).to(tl.float32))


@case("a constant type")
def dtype():
    cast[(1,)](F32, F32, TO=tl.bfloat16, BLOCK=64)


@case("a constant type, of integers")
def integers():
    cast[(1,)](F32, F32, TO=tl.int8, BLOCK=64)


@case("a constant type, of eight bits")
def eight():
    cast[(1,)](F32, F32, TO=tl.float8e5, BLOCK=64)


@triton.jit
def through(addresses, out, TO: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.load(addresses).to(TO)
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(at + offsets))


@triton.jit
def grouped(addresses, out, BLOCK: tl.constexpr):
    at = tl.load(addresses + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(at + offsets))


@case("a pointer that is loaded")
def pointers():
    from corpus.arguments import I64

    grouped[(4,)](I64, F32, BLOCK=64)


@case("a constant type of a pointer", until=(3, 2))
def pointer_type():
    from corpus.arguments import I64

    through[(1,)](I64, F32, TO=tl.pointer_type(tl.float32), BLOCK=64)


@triton.jit
def with_globals(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets).to(TYPE) * SCALE
    tl.store(x + offsets, tl.where(value > 1, value.to(tl.float32), INFINITE))


@case("constants of the module")
def of_module():
    with_globals[(1,)](F32, BLOCK=64)


@triton.jit
def optional(x, bias, flag, factor, n, BLOCK: tl.constexpr, OTHER: tl.constexpr = 4):
    offsets = tl.arange(0, BLOCK)
    value = tl.load(x + offsets) * factor + OTHER
    if bias is not None:
        value += tl.load(bias + offsets)
    if flag:
        value = -value
    tl.store(x + offsets, value, mask=offsets < n)


@case("None for a tensor, a truth, a float")
def without():
    optional[(1,)](F32, None, True, 0.25, 100, BLOCK=64)


@case("a tensor that may be None, a falsehood, a float that is 1")
def with_bias():
    optional[(1,)](F32, F32, False, 1.0, -100, BLOCK=64, OTHER=7)


@triton.jit
def flags(x, out, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets).to(tl.float32))


@case("a tensor of truths")
def truths():
    flags[(1,)](type(F32)("bool"), F32, BLOCK=64)


@case("a tensor of bytes")
def bytes_():
    flags[(1,)](type(F32)("uint8"), F32, BLOCK=64)


@case("a tensor of eight-bit floats")
def floats_of_eight():
    flags[(1,)](type(F32)("float8_e5m2"), F32, BLOCK=64)


@case("a tensor that is read only", since=(3, 2))
def constant_tensor():
    read_only[(1,)](I32, F32, BLOCK=64)


@triton.jit
def read_only(x: tl.const, out, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets).to(tl.float32))


@triton.jit
def annotated(x, n: tl.int64, factor: tl.float32, flag: "i32", BLOCK: tl.constexpr):  # noqa: F821
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, offsets * factor + flag, mask=offsets < n)


@case("arguments whose types are annotated", since=(3, 4))
def types():
    annotated[(1,)](F32, 16, 3.0, 2, BLOCK=64)


@triton.jit
def many(x, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) * SHAPE[0])


@case("a constant tuple", since=(3, 3))
def tuple_constant():
    many[(1,)](F32, SHAPE=(4, 8), BLOCK=64)


@case("a constant tuple, nested", since=(3, 3))
def nested_constant():
    many[(1,)](F32, SHAPE=(4, (8, (None, "x", 0.5)), tl.float32, True), BLOCK=64)


@case("a constant named tuple", since=(3, 4))
def named_constant():
    many[(1,)](F32, SHAPE=Sizes(6, 8), BLOCK=64)


@dataclasses.dataclass
class AtItsEnd:
    """Of which no recipe may make a value, since that would do something."""

    path: str

    def __del__(self):
        raise AssertionError
