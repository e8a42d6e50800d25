"""How many times is a kernel compiled when N ranks start with an empty cache, and what does that cost?

Real Triton, real kernels for sm_90 (no GPU needed), N processes at a barrier: Triton's own manager with one shared
directory, with one directory per rank, and the plug-in with one per rank; each cold, then warm. Compiles are counted by
Triton's listener; bytes are `st_size` of distinct inodes, blocks what the file system allocated.

The last line is the goal of the design: CPU of all ranks, cold, beside one cold rank plus the others warm.

Does not measure: the start of Python and Triton (before the barrier), autotuning, or a network file system.

Repeat: python benchmarks/bench_cold_start.py [--smoke] [--ranks N] [--kernels K]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import environment, options_of

KERNELS = Path(__file__).parent.parent / "tests/support/kernels.py"


def run(root: Path, manager: str, ranks: int, kernels: int) -> dict[str, float]:
    """Start the ranks, release them together, and add up what they say."""
    started = []
    for rank in range(ranks):
        directory = root / "triton" / ("shared" if manager == "stock, shared" else str(rank))
        env = {**os.environ, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(directory)}
        if manager == "gpucache":
            env["TRITON_CACHE_MANAGER"] = "gpucache.triton:DeviceCacheManager"
        command = [sys.executable, str(KERNELS), str(kernels), "90"]
        started.append(
            subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    for process in started:
        assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [json.loads(process.communicate()[0]) for process in started]
    wall = time.perf_counter() - began
    assert len({json.dumps(one["digests"]) for one in said}) == 1, "the ranks' kernels differ"
    return {
        "compiles": sum(one["compiled"] for one in said),
        "wall": wall,
        "cpu": sum(one["cpu_s"] for one in said),
    }


def disk(root: Path) -> tuple[int, int]:
    found = {}
    for path in root.rglob("*"):
        if path.is_file():
            stat = path.stat()
            found[stat.st_ino] = (stat.st_size, stat.st_blocks * 512)
    return sum(size for size, _ in found.values()), sum(blocks for _, blocks in found.values())


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--kernels", type=int, default=12)
    options = parser.parse_args()
    ranks, kernels = (2, 1) if options.smoke else (options.ranks, options.kernels)
    print(environment())
    figures = {}
    for manager, count in (
        ("stock, shared", ranks),
        ("stock, own", ranks),
        ("gpucache", ranks),
        ("gpucache", 1),
    ):
        with tempfile.TemporaryDirectory() as root:
            # or a root in the temporary directory would be taken for a fresh one
            os.environ["TMPDIR"] = root
            for state in ("cold", "warm"):
                seen = run(Path(root), manager, count, kernels)
                size, blocks = disk(Path(root))
                figures[manager, count, state] = (seen, size)
                print(
                    f"{manager:<14}{count:>3} ranks x {kernels} kernels {state:<5}{seen['compiles']:>5.0f} compiles"
                    f"{seen['wall']:8.2f} s wall{seen['cpu']:8.2f} s CPU{size / 2**20:8.2f} MiB"
                    f"{blocks / 2**20:8.2f} MiB allocated"
                )
            del os.environ["TMPDIR"]
    cold, warm = figures["gpucache", ranks, "cold"], figures["gpucache", ranks, "warm"]
    one = figures["gpucache", 1, "cold"]
    bar = one[0]["cpu"] + warm[0]["cpu"] * (ranks - 1) / ranks
    print(f"CPU, cold / (one cold + the others warm): {cold[0]['cpu'] / bar:.2f}x")
    print(f"bytes / one rank: {cold[1] / one[1]:.3f}x")


if __name__ == "__main__":
    main()
