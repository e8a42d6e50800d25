"""Kernels whose compile takes as long as is asked for, and a rank that needs them one after the other.

Whoever imports this module, a rank or a worker of `gpucache warm`, has the last stage of Triton's compile sleep or
compute beforehand: `SLOW_KERNELS_SLEEP_S` stands for a compile where a core is free, `SLOW_KERNELS_BURN_S` is CPU time.
Each compile adds a byte to the file `SLOW_KERNELS_LOG`. Triton's key is not changed by that.

``python slow_kernels.py COUNT STARTUP_S`` is a rank; it prints when it had each kernel (`time.monotonic`), as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

_make_cubin = CUDABackend.make_cubin


def _slowly(*arguments: object, **options: object) -> bytes:
    time.sleep(float(os.environ.get("SLOW_KERNELS_SLEEP_S", "0")))
    end = time.thread_time() + float(os.environ.get("SLOW_KERNELS_BURN_S", "0"))
    while time.thread_time() < end:
        pass
    log = os.environ.get("SLOW_KERNELS_LOG")
    if log:
        with open(log, "ab") as file:
            file.write(b".")
    return _make_cubin(*arguments, **options)


if (
    _make_cubin.__name__ != _slowly.__name__
):  # a rank is this module twice, by its name and as a program
    CUDABackend.make_cubin = _slowly


@triton.jit
def slow(x, out, n, NUMBER: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offsets, offsets < n)
    tl.store(out + offsets, value * NUMBER, offsets < n)


def main() -> None:
    count, startup_s = int(sys.argv[1]), float(sys.argv[2])
    began = time.monotonic()
    from triton.runtime import cache

    cache.triton_key()
    # What importing torch and loading weights would take.
    time.sleep(max(0.0, began + startup_s - time.monotonic()))
    types = {"x": "*fp32", "out": "*fp32", "n": "i32", "NUMBER": "constexpr", "BLOCK": "constexpr"}
    had = []
    for number in range(count):
        constants = {"NUMBER": number + 2, "BLOCK": 256}
        source = ASTSource(fn=slow, signature=types, constexprs=constants)
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        had.append(time.monotonic())
    print(json.dumps(had))


if __name__ == "__main__":
    # By its name, so that recipes say where the kernels are.
    import slow_kernels

    slow_kernels.main()
