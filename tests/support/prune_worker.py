"""Compile and read real kernels while somebody prunes: each lookup with a new manager, every file opened.

``python prune_worker.py NUMBER GRACE STOP`` prints ``ready``, waits for a line, works until there is a file STOP, and
prints one JSON object: how many kernels were read, how many were compiled, and what failed. All workers read a few
kernels all the time; each reads others again at the moment at which GRACE seconds without a use are over.
"""

import json
import os
import random
import sys
import time
import traceback

import kernels
import triton
from triton.backends.compiler import GPUTarget

HOT, COLD = 3, 8
FEW, LONG_S = 3, 4.0
JITTER_S = 0.05


def read(number):
    """What a launch needs, and then all there is."""
    kernel = triton.compile(kernels.source(number), target=GPUTarget("cuda", 90, 32))
    assert kernel.asm["cubin"][:4] == b"\x7fELF"
    for path in kernel.metadata_group.values():
        with open(path, "rb") as file:
            assert file.read()


def main():
    worker, grace_s, stop = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    draw = random.Random(worker)
    compiled = kernels.count_compiles()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    first = HOT + worker * COLD
    due = dict.fromkeys(range(first, first + (COLD if grace_s > LONG_S else FEW)), 0.0)
    reads, failures = 0, []
    while not os.path.exists(stop) and not failures:
        number = min(due, key=due.get)
        if due[number] > time.monotonic() or draw.random() < 0.5:
            number = draw.randrange(HOT)
        try:
            read(number)
            reads += 1
        except Exception:
            failures.append(traceback.format_exc())
        if number in due:
            due[number] = time.monotonic() + grace_s + draw.uniform(-JITTER_S, JITTER_S)
    sys.stdout.write(
        json.dumps({"reads": reads, "compiled": len(compiled), "failures": failures}) + "\n"
    )


if __name__ == "__main__":
    main()
