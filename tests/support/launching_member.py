"""Launch kernels through the plug-in, one after another, until a file is there. A program of its own.

``launching_member.py SEED MOST STOP``: the seeds of the kernels are ``SEED-0``, ``SEED-1`` and so on, ``MOST`` at most.
It prints a line for each: the seed, whether that was a hit, and whether all was read as it was made.
"""

from __future__ import annotations

import os
import sys

from support.launches import kernel, launched


def main() -> None:
    seed, most, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    for number in range(most):
        if os.path.exists(stop):
            break
        key, files = kernel(f"{seed}-{number}")
        hit, read = launched(key, files)
        print(f"{seed}-{number}", "hit" if hit else "miss", read == files, flush=True)


if __name__ == "__main__":
    main()
