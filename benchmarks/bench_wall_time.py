"""Do people wait less where cores are free, if what the last run compiled is compiled ahead of the program?

Ranks of one node need the same kernels in the same order. A compile is a sleep here (and 0.1 s of real Triton), so that
the two cores of a small machine stand for many; the start-up of the program, 3 s, is a sleep as well. Told is the time
from the start of the ranks until the last rank has its last kernel: stock Triton, the plug-in, and the plug-in with
`gpucache run --warm`, each with an empty cache. Then the same with a compile that computes and with all cores busy with
something else: by how much any kernel comes later to any rank with `--warm` than without.

Does not measure: real compiles on real free cores, which share memory bandwidth and caches; the modules of a real
program, whose import takes a pool as long as the program; kernels that no recipe has, which come as without `--warm`;
a start-up shorter than the pool's own, about a second. That a node has as many free cores as there are kernels is an
assumption: with fewer, the kernels come in that many rounds. Where Linux groups processes by session (autogroup), the
pool, which has a session of its own, gets a share of busy cores of its own: that is part of the second half's figures.

Repeat: python benchmarks/bench_wall_time.py [--smoke] [--only free|busy] [--ranks N] [--kernels K]
On a machine that others use as well the first half needs a priority: chrt -r 1 python … --only free
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import truediv
from pathlib import Path
from typing import NamedTuple

from report import environment, options_of

RANK = Path(__file__).with_name("slow_kernels.py")
GPUCACHE = [sys.executable, "-m", "gpucache"]
RECORDED = "recipes.jsonl"


class Job(NamedTuple):
    """What the ranks do."""

    ranks: int
    kernels: int
    startup_s: float
    variables: dict[str, str]


class Seen(NamedTuple):
    """What was seen of one start of all ranks."""

    had_s: list[list[float]]
    """When each rank had each kernel, in seconds since the start."""
    compiles: int

    @property
    def last_s(self) -> float:
        return max(one[-1] for one in self.had_s)


@contextmanager
def directory(below: Path) -> Iterator[str]:
    """A directory that is removed afterwards; a pool that compiled ahead may still be writing there as it ends."""
    made = tempfile.mkdtemp(dir=below)
    try:
        yield made
    finally:
        end = time.monotonic() + 10
        while os.path.exists(made) and time.monotonic() < end:
            shutil.rmtree(made, ignore_errors=True)
            time.sleep(0.05)


def start(below: Path, job: Job, how: Sequence[str] | None) -> Seen:
    """Start all ranks in a new root; ``how`` are options of `gpucache run`, None is stock Triton without it."""
    with directory(below) as root:
        log = Path(root, "log")
        log.touch()
        environ = {**os.environ, **job.variables, "SLOW_KERNELS_LOG": str(log)}
        environ["GPUCACHE_DIR"] = f"{root}/root"
        environ["GPUCACHE_FAKE_DEVICES"] = str(job.ranks)
        quiet = subprocess.DEVNULL
        subprocess.run(
            [*GPUCACHE, "provision"], env=environ, stdout=quiet, stderr=quiet, check=True
        )
        program = [sys.executable, str(RANK), str(job.kernels), str(job.startup_s)]
        began = time.monotonic()
        started = []
        for rank in range(job.ranks):
            own = {**environ, "TRITON_CACHE_DIR": f"{root}/stock/{rank}"}
            command = program
            if how is not None:
                own = environ
                command = [*GPUCACHE, "run", "--device", str(rank), *how, "--", *program]
            process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=quiet)
            started.append(process)
        had = [json.loads(process.communicate()[0]) for process in started]
        compiles = log.stat().st_size
    return Seen([[then - began for then in one] for one in had], compiles)


def record(below: Path, job: Job) -> str:
    """The recipes of the kernels, as one quick run leaves them."""
    path = str(below / RECORDED)
    quick = Job(1, job.kernels, 0.0, {})
    start(below, quick, ["--record", path])
    return path


@contextmanager
def busy_cores():
    """Have each core compute something else."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def line(name: str, seen: Seen, job: Job) -> str:
    after = seen.last_s - job.startup_s
    return (
        f"{name:<22}{job.ranks:>3} ranks x {job.kernels} kernels{seen.compiles:>5} compiles"
        f"{seen.last_s:8.2f} s to the last kernel, {after:6.2f} s after the start-up"
    )


def free_cores(below: Path, job: Job, recipes: str, longest_s: float) -> None:
    warm = ["--warm", recipes, "--jobs", str(job.kernels)]
    for name, how in (("stock", None), ("gpucache", []), ("gpucache run --warm", warm)):
        seen = start(below, job, how)
        print(line(name, seen, job))
    bar = job.startup_s + 1.3 * longest_s
    print(f"to reach: {job.kernels} compiles, {bar:.2f} s (start-up + 1.3x of the longest kernel)")


def no_core_free(below: Path, job: Job, recipes: str, rounds: int) -> None:
    """Tell the worst ratio, over all ranks and kernels, of when a kernel was there, with `--warm` and without.

    Both take turns in being first, since others may use the machine as well.
    """
    ratios = []
    for number in range(rounds):
        seen = {}
        with busy_cores():
            for warm in (True, False) if number % 2 else (False, True):
                seen[warm] = start(below, job, ["--warm", recipes] if warm else [])
        without, ahead = seen[False], seen[True]
        print(line("busy: gpucache", without, job))
        print(line("busy: run --warm", ahead, job))
        ratios.append(max(map(truediv, chain(*ahead.had_s), chain(*without.had_s))))
    worst = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print("busy: the latest kernel of any rank, with --warm / without (to stay below 1.2):")
    print(f"busy: {worst}; median {statistics.median(ratios):.2f}")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--only", choices=("free", "busy"), help="one half alone")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--kernels", type=int, default=8)
    options = parser.parse_args()
    ranks, kernels, startup_s, sleep_s, burn_s, rounds = (
        options.ranks,
        options.kernels,
        3.0,
        1.5,
        0.3,
        3,
    )
    if options.smoke:
        ranks, kernels, startup_s, sleep_s, burn_s, rounds = 2, 2, 0.2, 0.1, 0.05, 1
    print(environment())
    with tempfile.TemporaryDirectory() as below:
        # or a root in the temporary directory would be taken for a fresh one
        os.environ["TMPDIR"] = below
        slept = Job(ranks, kernels, startup_s, {"SLOW_KERNELS_SLEEP_S": str(sleep_s)})
        recipes = record(Path(below), slept)
        if options.only != "busy":
            free_cores(Path(below), slept, recipes, sleep_s + 0.13)
        if options.only == "free":
            return
        burned = Job(ranks, kernels, startup_s, {"SLOW_KERNELS_BURN_S": str(burn_s)})
        no_core_free(Path(below), burned, recipes, rounds)


if __name__ == "__main__":
    main()
