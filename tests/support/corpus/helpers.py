"""Functions that kernels of other modules call."""

import triton
import triton.language as tl


@triton.jit(noinline=True)
def inverse_root(value):
    return 1 / tl.sqrt(value)


@triton.jit
def _mean(value, n):
    return tl.sum(value, axis=0) / n


@triton.jit
def moments(value, mask, n):
    mean = _mean(value, n)
    apart = tl.where(mask, value - mean, 0.0)
    return mean, _mean(apart * apart, n)


@triton.jit
def double(value):
    return value * 2


@triton.jit
def square(value):
    return value * value
