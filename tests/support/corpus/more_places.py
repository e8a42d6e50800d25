"""More places of kernels: made by a factory as the module is imported, decorated twice, in a file, from a source."""

import importlib.util
import sys
from pathlib import Path

import triton
import triton.language as tl
from corpus.arguments import F32
from corpus.cases import VERSION, case
from corpus.deep import inner


def factory(amount):
    AMOUNT = tl.constexpr(amount)  # noqa: N806

    @triton.jit
    def made(x, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(x + offsets, tl.load(x + offsets) + AMOUNT)

    return made


added_one, added_two = factory(1), factory(2)


@case("kernels that a factory makes as its module is imported", since=(3, 6))
def made():
    added_one[(1,)](F32, BLOCK=64)
    added_two[(1,)](F32, BLOCK=64)


def shifted(x, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + n)


specialized = triton.jit(shifted)
general = triton.jit(shifted, do_not_specialize=["n"])


@case("a function that is decorated twice")
def twice():
    specialized[(1,)](F32, 1, BLOCK=64)
    specialized[(1,)](F32, 32, BLOCK=64)
    general[(1,)](F32, 1, BLOCK=64)
    general[(1,)](F32, 32, BLOCK=64)


@case("a kernel in a file that no path leads to")
def in_file():
    name = "a_file_that_no_path_leads_to"
    if name not in sys.modules:
        file = Path(__file__).with_name("apart") / "file.py"
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    sys.modules[name].kernel[(1,)](F32, BLOCK=64)


@triton.jit
def by_hand(x, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 40, mask=offsets < n)


@case("a source made by hand", since=(3, 4))
def hand_made():
    types = {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    source = triton.compiler.ASTSource(by_hand, types, {"BLOCK": 64})
    triton.compile(source)
    attributes = {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 8]]}
    source = triton.compiler.ASTSource(by_hand, types, {(2,): 64}, attributes)
    triton.compile(source, options={"num_warps": 2})


@case("a kernel that is compiled and not launched")
def compiled_only():
    by_hand.warmup(F32, 64, BLOCK=32, grid=(1,))


if VERSION >= (3, 9):

    @case("kernels compiled in threads", since=(3, 9))
    def in_threads():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as executor, triton.AsyncCompileMode(executor):
            by_hand.warmup(F32, 1, BLOCK=128, grid=(1,))
            inner.kernel.warmup(F32, BLOCK=256, grid=(1,))


@triton.jit
def the_name_of_this_kernel_is_so_long_that_triton_names_its_files_by_the_first_letters_alone_which_are_150_and_it_goes_on_for_a_while_until_it_has_more_than_that(x, BLOCK: tl.constexpr):  # noqa: E501  # fmt: skip
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 41)


LONG = the_name_of_this_kernel_is_so_long_that_triton_names_its_files_by_the_first_letters_alone_which_are_150_and_it_goes_on_for_a_while_until_it_has_more_than_that  # noqa: E501  # fmt: skip


@case("a kernel with a long name")
def long_name():
    LONG[(1,)](F32, BLOCK=64)


class Registry:
    """As libraries keep kernels by name, with a wrapper that is an object."""

    def __init__(self):
        self.kernels = {}

    def register(self, name):
        def keep(kernel):
            self.kernels[name] = kernel
            return lambda *arguments, **constants: kernel[(1,)](*arguments, **constants)

        return keep


registry = Registry()


@registry.register("tuned")
@triton.autotune([triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})], key=[])
@triton.heuristics({"EVEN": lambda args: True})
@triton.jit
def registered(x, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 42)


@case("an autotuned kernel that a registry keeps")
def in_registry():
    registered(F32)


@triton.jit
def edited(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 43)


if VERSION >= (3, 6):

    @case("a kernel whose text is changed as the program runs", since=(3, 6))
    def rewritten():
        edited._unsafe_update_src(edited.src.replace("43", "44"))
        edited[(1,)](F32, BLOCK=64)


if VERSION >= (3, 6):
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl

    @gluon.jit
    def in_gluon(x, out, layout: gl.constexpr, BLOCK: gl.constexpr):
        offsets = gl.arange(0, BLOCK, layout=layout)
        gl.store(out + offsets, gl.load(x + offsets) + 1)

    @case("a kernel in Gluon", since=(3, 6), backends=("cuda",))
    def gluon_kernel():
        layout = gl.BlockedLayout([1], [32], [4], [0])
        in_gluon[(1,)](F32, F32, layout, BLOCK=128, num_warps=4)

    @gluon.jit
    def laid_out(x, out, BLOCK: gl.constexpr):
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
        offsets = gl.arange(0, BLOCK, layout=layout)
        gl.store(out + offsets, gl.load(x + offsets) + 2)

    @case("a kernel in Gluon that chooses its layout", since=(3, 6), backends=("cuda",))
    def gluon_layout():
        laid_out[(1,)](F32, F32, BLOCK=128)
