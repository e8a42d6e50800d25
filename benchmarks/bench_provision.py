"""What does provisioning eight devices cost: the first time, when all is there, and with 64 processes at once?

*First* is an empty root each time (import of the lock library excluded); *repeated* is a complete root, beside one bare
``os.mkdir`` that fails with EEXIST per directory; *contended* is 64 spawned processes at a barrier on an empty root,
and counts how often each directory was made.

Does not measure: NVML (see the closing notes of a machine with a GPU), network file systems, or a cold page cache.

Repeat: python benchmarks/bench_provision.py [--smoke] [--root DIRECTORY]
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

from report import environment, line, options_of

from gpucache import DeviceCacheRegistry, Snapshot, Status
from gpucache.machine.device import Device

DEVICES = tuple(
    Device(uuid=f"GPU-{n:08x}", index=n, name="H100", compute_capability=(9, 0)) for n in range(8)
)
SNAPSHOT = Snapshot(status=Status.OK, source="nvml", devices=DEVICES, driver="580.95.05")


def timed(function: object) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first(root: str, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds + 1):
        shutil.rmtree(root, ignore_errors=True)
        seconds.append(timed(DeviceCacheRegistry(root, SNAPSHOT, {}).provision))
    return seconds[1:]  # the very first one imports filelock


def repeated(root: str, rounds: int) -> tuple[list[float], list[float]]:
    registry = DeviceCacheRegistry(root, SNAPSHOT, {})
    made = registry.provision()
    assert registry.provision().created == ()
    assert len(made.existing) + len(made.created) == 8
    return [timed(registry.provision) for _ in range(rounds)], [
        timed(lambda: bare(registry)) for _ in range(rounds)
    ]


def bare(registry: DeviceCacheRegistry) -> None:
    for ordinal in registry:
        try:
            os.mkdir(registry.path(ordinal))
        except FileExistsError:
            continue


def contender(base: str, rounds: int, barrier: object, results: object) -> None:
    for number in range(rounds):
        registry = DeviceCacheRegistry(f"{base}-{number}", SNAPSHOT, {})
        barrier.wait()
        start = time.perf_counter()
        created = registry.provision().created
        results.put((number, time.perf_counter() - start, len(created)))


def contended(base: str, processes: int, rounds: int) -> list[float]:
    """Seconds of each process; every round must have made each directory exactly once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=contender, args=(base, rounds, barrier, results))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    said = [results.get(timeout=300) for _ in range(processes * rounds)]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    for number in range(rounds):
        assert sum(created for which, _, created in said if which == number) == 8
    return [seconds for _, seconds, _ in said]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--root", help="where to make the caches (default: a temporary directory)")
    options = parser.parse_args()
    processes, rounds, many = (4, 1, 3) if options.smoke else (64, 5, 1000)
    with tempfile.TemporaryDirectory(dir=options.root) as directory:
        root = str(Path(directory) / "root")
        print(environment())
        print(line("first", first(root, many // 10 + 1)))
        ours, mkdirs = repeated(root, many)
        baseline = sorted(mkdirs)[len(mkdirs) // 2]
        print(line("eight bare mkdir that fail", mkdirs))
        print(line("repeated: no lock, nothing written", ours, baseline))
        print(line(f"contended: {processes} processes at once", contended(root, processes, rounds)))


if __name__ == "__main__":
    main()
