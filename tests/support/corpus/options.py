"""What a launch may say beside its arguments."""

import triton
import triton.language as tl
from corpus.arguments import F16, F32
from corpus.cases import case


@triton.jit
def scaled(x, out, n, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask) * factor + 1.5, mask)


def launch(block, **options):
    scaled[(4,)](F32, F32, 1024, 2.5, BLOCK=block, **options)


CUDA = ("cuda",)


@case("num_warps and num_stages")
def stages():
    launch(64, num_warps=2, num_stages=5)


@case("num_ctas", backends=CUDA)
def clusters():
    launch(512, num_ctas=2)


@case("maxnreg", backends=CUDA)
def registers():
    launch(64, maxnreg=64)


@case("launch_pdl", since=(3, 4), backends=CUDA)
def dependent():
    launch(64, launch_pdl=True)


@case("launch_cooperative_grid", since=(3, 3))
def cooperative():
    launch(64, launch_cooperative_grid=True)


@case("no fusion of multiplication and addition")
def unfused():
    launch(64, enable_fp_fusion=False)


@case("debug")
def debugged():
    launch(64, debug=True)


@case("overflow not checked under debug", since=(3, 3))
def unchecked():
    launch(128, debug=True, sanitize_overflow=False)


@case("options of AMD", backends=("hip",))
def amd():
    launch(64, waves_per_eu=2, matrix_instr_nonkdim=16, kpack=1)


@case("options of ptxas", since=(3, 6), backends=CUDA)
def ptxas():
    launch(64, ptx_options="--opt-level 2")


@triton.jit
def product(a, b, c, PRECISION: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = rows * N + columns
    total = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION)
    tl.store(c + at, total)


@case("precision of a product, by name", backends=CUDA)
def precise():
    product[(1,)](F32, F32, F32, PRECISION="tf32x3", N=16)


@case("the precision that products have by default")
def by_default():
    product[(1,)](F32, F32, F32, PRECISION=None, N=16, default_dot_input_precision="ieee")


@case("a product of halves")
def halves():
    product[(1,)](F16, F16, F32, PRECISION=None, N=32)


@triton.jit(debug=True)
def checked(x, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.device_assert(n < 4096, "too many")
    tl.store(x + offsets, tl.load(x + offsets) + 1)


@case("a kernel that is debugged by its decorator")
def decorated():
    checked[(1,)](F32, 1024, BLOCK=64)


@triton.jit(
    do_not_specialize=["n"],
    do_not_specialize_on_alignment=["x"],
    repr=lambda said: f"renamed_{said.constants['BLOCK']}",
    launch_metadata=lambda grid, kernel, args: {"name": kernel.name},
)
def unspecialized(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(x + offsets, tl.load(y + offsets, mask), mask)


@case("do_not_specialize, and a name that is computed")
def plain():
    unspecialized[(1,)](F32, F32, 1, BLOCK=64)


@case("do_not_specialize, divisible")
def plain_divisible():
    unspecialized[(1,)](F32, F32, 128, BLOCK=128)
