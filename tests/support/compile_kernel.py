"""Compile one real Triton kernel for sm_90 without a GPU; print the environment's directory and whether it was a hit.

Run as a script, by `gpucache run` and by torchrun.
"""

import json
import os
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask) + tl.load(y + offsets, mask), mask)


def main() -> None:
    hits = []
    triton.knobs.compilation.listener = lambda **seen: hits.append(seen["cache_hit"])
    source = ASTSource(
        fn=add,
        signature={"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": 1024},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    names = ("TRITON_CACHE_DIR", "GPUCACHE_DEVICE", "LOCAL_RANK")
    told = {name: os.environ.get(name) for name in names}
    line = json.dumps({**told, "hit": hits[0], "hash": kernel.hash, "name": kernel.metadata.name})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
