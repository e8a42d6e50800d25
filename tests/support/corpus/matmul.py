"""The third tutorial: a matrix product that is autotuned, with an activation by name; and the kinds of `autotune`."""

import triton
import triton.language as tl
from corpus.arguments import F16, F32
from corpus.cases import case


@triton.jit
def leaky_relu(value):
    return tl.where(value >= 0, value, 0.01 * value)


def configs():
    sizes = ((32, 32, 32, 3, 4), (64, 32, 32, 2, 2), (32, 64, 16, 2, 8))
    return [
        triton.Config(
            {"M_BLOCK": m, "N_BLOCK": n, "K_BLOCK": k}, num_stages=stages, num_warps=warps
        )
        for m, n, k, stages, warps in sizes
    ]


def too_small(configs, named_args, **_):
    return [config for config in configs if config.kwargs["K_BLOCK"] <= named_args["k"]]


@triton.autotune(
    configs=configs(), key=["m", "n", "k"], prune_configs_by={"early_config_prune": too_small}
)
@triton.jit
def matmul(
    a, b, c, m, n, k, a_stride, b_stride, c_stride,
    M_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * M_BLOCK + tl.arange(0, M_BLOCK)
    columns = tl.program_id(1) * N_BLOCK + tl.arange(0, N_BLOCK)
    inner = tl.arange(0, K_BLOCK)
    a_at = a + rows[:, None] * a_stride + inner[None, :]
    b_at = b + inner[:, None] * b_stride + columns[None, :]
    total = tl.zeros((M_BLOCK, N_BLOCK), dtype=tl.float32)
    for start in range(tl.cdiv(k, K_BLOCK)):
        left = k - start * K_BLOCK
        one = tl.load(a_at, mask=inner[None, :] < left, other=0.0)
        two = tl.load(b_at, mask=inner[:, None] < left, other=0.0)
        total = tl.dot(one, two, total)
        a_at += K_BLOCK
        b_at += K_BLOCK * b_stride
    if ACTIVATION == "leaky_relu":
        total = leaky_relu(total)
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * c_stride + columns[None, :], total.to(c.dtype.element_ty), mask)


@case("matmul, autotuned, with an activation")
def activated():
    matmul[lambda meta: (triton.cdiv(512, meta["M_BLOCK"]), 4)](
        F16, F16, F16, 512, 512, 512, 512, 512, 512, ACTIVATION="leaky_relu"
    )


@case("matmul, autotuned, odd sizes")
def odd():
    matmul[(4, 4)](F16, F16, F32, 511, 512, 129, 129, 512, 512, ACTIVATION="")


@triton.autotune(
    configs=[triton.Config({"BLOCK": 64}, num_warps=2), triton.Config({"BLOCK": 128}, num_warps=4)],
    key=["n"],
    reset_to_zero=["total"],
    restore_value=None,
)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def summed(x, total, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:  # noqa: SIM108
        value = tl.load(x + offsets)
    else:
        value = tl.load(x + offsets, mask=offsets < n, other=0.0)
    tl.atomic_add(total, tl.sum(value))


class Zeroed(type(F32)):
    """A tensor that `reset_to_zero` can set to zero."""

    def zero_(self):
        """Nothing to do: nothing is in it."""


@case("heuristics below an autotuner")
def below():
    summed[(4,)](F32, Zeroed(), 192)


@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n"])})
@triton.jit
def doubled(x, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(x + offsets, 2 * tl.load(x + offsets, mask), mask)


@case("heuristics")
def chosen():
    doubled[(1,)](F32, 100)
