"""Descriptors of tensors, made on the host and in the kernel, and block pointers."""

import triton
import triton.language as tl
from corpus.arguments import F16, F32, Tensor
from corpus.cases import VERSION, case

if VERSION >= (3, 4):
    from triton.tools.tensor_descriptor import TensorDescriptor

    @triton.jit
    def copied(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
        out.store([row, column], x.load([row, column]))

    def described(tensor, rows, columns):
        return TensorDescriptor(tensor, [256, 256], [256, 1], [rows, columns])

    @case("descriptors of the host")
    def host():
        copied[(4, 4)](described(F32, 32, 32), described(F32, 32, 32), ROWS=32, COLUMNS=32)

    @case("descriptors of the host, padded with what is no number", since=(3, 5))
    def padded():
        one, other = described(F16, 16, 64), described(F16, 16, 64)
        one.padding = "nan"
        copied[(4, 4)](one, other, ROWS=16, COLUMNS=64)

    @triton.jit
    def made(x, out, m, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        source = tl.make_tensor_descriptor(x, [m, n], [n, 1], [ROWS, COLUMNS])
        target = tl.make_tensor_descriptor(out, [m, n], [n, 1], [ROWS, COLUMNS])
        row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
        target.store([row, column], source.load([row, column]) * 2)

    @case("descriptors that the kernel makes")
    def device():
        triton.set_allocator(lambda size, alignment, stream: Tensor("int8"))
        made[(4, 4)](F16, F16, 256, 256, ROWS=32, COLUMNS=64)

    @triton.jit
    def tupled(both, ROWS: tl.constexpr):
        both[1].store([0, 0], both[0].load([0, 0]))

    @case("a tuple of descriptors")
    def in_tuple():
        tupled[(1,)]((described(F32, 16, 32), described(F32, 16, 32)), ROWS=16)

    @triton.autotune(
        configs=[
            triton.Config(
                {"ROWS": rows, "COLUMNS": 32}, num_warps=warps, pre_hook=lambda args: resize(args)
            )
            for rows, warps in ((16, 2), (32, 4))
        ],
        key=["n"],
    )
    @triton.jit
    def tuned(x, out, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        at = [tl.program_id(0) * ROWS, 0]
        out.store(at, x.load(at) + n)

    def resize(args):
        for name in ("x", "out"):
            args[name].block_shape = [args["ROWS"], args["COLUMNS"]]

    @case("descriptors of the host that an autotuner resizes")
    def resized():
        tuned[(4,)](described(F32, 1, 1), described(F32, 1, 1), 256)


@triton.jit
def blocked(x, out, m, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    source = tl.make_block_ptr(x, (m, n), (n, 1), (0, 0), (ROWS, COLUMNS), (1, 0))
    target = tl.make_block_ptr(out, (m, n), (n, 1), (0, 0), (ROWS, COLUMNS), (1, 0))
    tl.store(target, tl.load(source, boundary_check=(0, 1)), boundary_check=(0, 1))


@case("block pointers", until=(3, 8))
def block_pointers():
    blocked[(1,)](F16, F16, 100, 100, ROWS=16, COLUMNS=32)
