"""What does a large cache cost: to look at one entry, to list and count all, to verify, to recount it in a rank?

A small tree (5,000 kernels) and a large one (50,000), one view of each kernel, 35 KB of files each, in memory
(``/dev/shm``), so that a disk has no part in it. Whole processes, start-up included, in turns; all is *warm*.

- *One entry*: ``ls KEY`` and ``explain KEY`` by the whole key and by its first two and four letters (two fit many keys,
  which is an error that names some), beside ``gpucache stats``, which reads no entry.
- *All entries*: ``ls --json`` and ``du``, beside a Python process that scans every directory and asks for every file.
- *Verify*, beside a Python process that reads every file once and makes its SHA-256; on one core, and on all.
- *The recount*, which a rank does at its first put and once a day: the longest turn in one go, what all turns took, and
  what a busy main thread lost meanwhile, by what it gets done in a second alone. Other work on the machine blurs this.

Ratios are of one round, as medians with the quartiles in brackets; where other work shares the processor, believe the
ratio of CPU time. Memory is the most that any round held, never less than this benchmark's own 20 MiB or so.

Does not measure: a cold page cache, disks and network file systems, kernels larger than a vector addition, or a cache
in use meanwhile.

Repeat: python benchmarks/bench_scale.py [--smoke] [--rounds N] [--root DIRECTORY]
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from process import Spent, line, run
from report import environment, options_of, short

WALK = str(Path(__file__).with_name("walk.py"))
MOST_TURNS = 1000


def gpucache(root: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "gpucache", *words, "--root", root]


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call it in a new process: what this one holds would be counted as memory of those it starts later."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def made(root: str, entries: int) -> str:
    """Make the tree; a key of it."""
    import tree  # for `in_a_process`

    return tree.make(root, entries, 1)[entries // 2]


def in_turns(commands: dict[str, list[str]], rounds: int, memory: bool = True) -> None:
    """Print what each command takes; the first is what the others are compared with."""
    spent: dict[str, list[Spent]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            fits_many = (0, 1) if name.endswith("letters") else (0,)
            spent[name].append(run(command, expected=fits_many))
    bare = spent[next(iter(spent))]
    for name, samples in spent.items():
        print(line(name, samples, bare, memory=memory), flush=True)


def one_entry(root: str, key: str, rounds: int) -> None:
    named = {"KEY": key, "of 2 letters": key[:2], "of 4 letters": key[:4]}
    commands = {"gpucache stats": gpucache(root, "stats")}
    for verb in ("ls", "explain"):
        commands |= {
            f"gpucache {verb} {name}": gpucache(root, verb, word) for name, word in named.items()
        }
    in_turns(commands, rounds)


def all_entries(root: str, rounds: int) -> None:
    commands = {"walk in Python": [sys.executable, WALK, root]}
    commands |= {
        "gpucache ls --json": gpucache(root, "ls", "--json"),
        "gpucache du": gpucache(root, "du"),
    }
    in_turns(commands, rounds)


def verified(root: str, rounds: int) -> None:
    cores = os.sched_getaffinity(0)
    commands = {"read and SHA-256 in Python": [sys.executable, WALK, "--sha256", root]}
    commands |= {"gpucache verify": gpucache(root, "verify")}
    for used in sorted({1, len(cores)}):
        print(f"verify, {used} core{'s' * (used > 1)}")
        with on_cores(set(sorted(cores)[:used])):
            in_turns(commands, rounds)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Let this process and those it starts meanwhile run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- the recount


class Busy:
    """A busy main thread: its ticks, the time they took, and its longest pause (seconds)."""

    def __init__(self) -> None:
        self.ticks = 0
        self.seconds = 0.0
        self.pause_s = 0.0

    def while_(self, going: Callable[[], bool]) -> None:
        start = last = time.perf_counter()
        while going():
            for _ in range(1000):
                now = time.perf_counter()
                self.pause_s = max(self.pause_s, now - last)
                self.ticks += 1
                last = now
        self.seconds += last - start

    def for_a_second(self) -> None:
        began = time.perf_counter()
        self.while_(lambda: time.perf_counter() - began < 1)


def recount(root: str) -> dict[str, float]:
    """Put kernels into a store that nobody has counted, until it is counted; what that cost the main thread."""
    import tree  # for `in_a_process`

    from gpucache.store.size import count_anew_later, total_bytes
    from gpucache.triton.manager import DeviceCacheManager

    os.environ |= {
        "GPUCACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/0",
        "GPUCACHE_MAX_SIZE": "1000GiB",
    }
    os.environ["GPUCACHE_SHARE"] = "1"
    count_anew_later(root)
    draw = random.Random()
    files = tree.contents(root, min(os.listdir(f"{root}/triton/0")))
    alone, beside, turns, cpus = Busy(), Busy(), [], []
    alone.for_a_second()
    while not total_bytes(root) and len(turns) < MOST_TURNS:
        start, cpu = time.perf_counter(), time.process_time() - time.thread_time()
        _put(DeviceCacheManager, tree.new_key(draw), files)
        for thread in threading.enumerate():
            if thread.name == "gpucache-limit":
                beside.while_(thread.is_alive)
        turns.append(time.perf_counter() - start)
        cpus.append(time.process_time() - time.thread_time() - cpu)
    alone.for_a_second()
    return {
        "turns": len(turns),
        "longest_s": max(turns),
        "longest_cpu_s": max(cpus),
        "cpu_s": sum(cpus),
        "lost_s": max(0.0, beside.seconds - beside.ticks / alone.ticks * alone.seconds),
        "beside_s": beside.seconds,
        "pause_s": beside.pause_s,
        "alone_s": alone.pause_s,
    }


def _put(manager: type[Any], key: str, files: dict[str, bytes]) -> None:
    """What Triton does about a kernel that is not there."""
    group = next(name for name in files if name.endswith(".json"))
    one = manager(key)
    assert one.get_group(group) is None
    one.put_group(group, {name: one.put(data, name) for name, data in files.items()})


def recounted(root: str, rounds: int) -> None:
    said = [in_a_process(recount, root) for _ in range(rounds)]
    each = {name: statistics.median(one[name] for one in said) for name in said[0]}
    if each["turns"] >= MOST_TURNS:
        print(f"{MOST_TURNS} puts did not let the store be counted")
    print("the recount in a rank, which has a busy main thread")
    print(f"  the longest turn: {short(each['longest_s'])}, {short(each['longest_cpu_s'])} of CPU")
    print(
        f"  all {each['turns']:.0f} turns, each with the put before it: {short(each['cpu_s'])} of CPU"
    )
    print(
        f"  lost by the main thread: {short(each['lost_s'])} of the {short(each['beside_s'])} that they took"
    )
    print(
        f"  its longest pause: {short(each['pause_s'])}; {short(each['alone_s'])} when it is alone"
    )


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="how many times each command is run (default: 5)"
    )
    parser.add_argument(
        "--root", help="where to make the caches (default: /dev/shm where there is one)"
    )
    options = parser.parse_args()
    small, large, rounds = (50, 100, 2) if options.smoke else (5000, 50000, options.rounds)
    print(environment())
    where = options.root or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    with tempfile.TemporaryDirectory(dir=where) as directory:
        for entries in (small, large):
            root = f"{os.path.realpath(directory)}/root"
            key = in_a_process(made, root, entries)
            print(f"{entries} entries, 1 view of each")
            all_entries(root, rounds)
            if entries == small:
                verified(root, rounds)
            else:
                one_entry(root, key, rounds)
                recounted(root, rounds)
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
