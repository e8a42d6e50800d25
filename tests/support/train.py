"""What the documentation's workers do: compile two real kernels for sm_90, and say how many compiles that took."""

import json
import os
import sys

import kernels

COUNT = 2


def train(number=None):
    """Compile, and say who has done so where."""
    compiled = kernels.count_compiles()
    for one in range(COUNT):
        kernels.triton.compile(kernels.source(one), target=kernels.GPUTarget("cuda", 90, 32))
    said = {
        "number": number,
        "pid": os.getpid(),
        "compiled": len(compiled),
        "directory": os.environ.get("TRITON_CACHE_DIR"),
    }
    os.write(1, f"{json.dumps(said)}\n".encode())
    return said


if __name__ == "__main__":
    train(*sys.argv[1:])
