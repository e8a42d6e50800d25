"""What does a cache operation cost: ours, and the same with the peers that keep compiled kernels or blobs on disk?

The peers: Triton's own ``FileCacheManager``; Red Hat's MCM, whose ``MCMTrackingCacheManager`` counts the hits of that
one in a database; the program cache of ``cuda.core``; JAX's LRU cache; ``diskcache``. All keep the same 5,000 kernels,
of seven files and 35 KB each: the first two as files, as we do, the others as one value. Peers that cannot be imported
are named and left out.

- *Get* is to learn the paths of a kernel's files, *get and read* to have all bytes, of 100 kernels that were read
  before; *first* is that reading before: there ours checks each digest, since the kernel is older than the last boot,
  and notes the use. *Put* is to look in vain and then to store all. *Without a limit* ours has one as it has by
  default, but far away.
- *At the limit*: as many kernels are there as may be, so that puts evict. Ours and diskcache's are put ten times as
  often as those of the peers that look at all they have for each. Evictions come in bursts: believe the mean.
- *List* and *import* are whole processes. Triton and JAX have no call that lists. What is listed is not alike: ours
  and MCM's tell much of each kernel (MCM from a database that ``mcm index`` has filled), the others name keys or count.

Figures are CPU time of the process, threads of the operation included, in memory (``/dev/shm``), where nothing waits;
everything is *warm*. All take turns, in an order that is shuffled in each round, but for MCM: it takes turns with us
alone, for whoever comes after its database finds the processor's caches cold. Each line ends with how many times the
peer's time ours is: within one round, as median with the quartiles in brackets, and of the means.

Does not measure: disks, network file systems, a cold page cache, several processes at once (which diskcache, JAX with a
limit and we lock for), or what a compile costs beside a put (100 ms and more). MCM's metadata has one field more,
``cluster_dims``: without it, its version of August 2025 takes no kernel for one.

Repeat: pip install triton cuda-core cuda-bindings jax diskcache
        pip install 'git+https://github.com/redhat-et/MCU@b6da7b9#subdirectory=mcm'
        python benchmarks/bench_peers.py [--smoke] [--entries N] [--rounds N] [--root DIRECTORY]
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import process
import tree
from peers import (
    CUDA,
    DISK,
    DRAW,
    JAX,
    MCM,
    OURS,
    PEERS,
    SCANNING,
    Cache,
    Kernel,
    Managed,
    cache_of,
    installed,
    ours,
    use,
)
from report import environment, options_of, ratio, short

from gpucache.store.counting import counted

FAR = "1000GiB"


def unlimited(base: str, names: list[str], kernels: list[Kernel]) -> dict[str, Cache]:
    """Our tree is there already; each peer puts the kernels by itself."""
    caches: dict[str, Cache] = {OURS: ours(f"{base}/{OURS}", FAR)}
    for name in names:
        caches[name] = cache_of(name, f"{base}/{name}")
        use(caches[name])
        for kernel in kernels:
            caches[name].put(kernel)
    return caches


def limited(base: str, names: list[str], kernels: list[Kernel]) -> dict[str, Cache]:
    """The same, and no more may be there."""
    size = sum(len(kernel.blob) for kernel in kernels)
    full = unlimited(base, names, kernels)
    caches: dict[str, Cache] = {OURS: ours(f"{base}/{OURS}", str(counted(f"{base}/{OURS}")))}
    for name in names:
        limit_bytes = full[name].cache.volume() if name == DISK else size
        caches[name] = cache_of(name, f"{base}/{name}", limit_bytes)
        for kernel in kernels:
            # JAX keeps the time of the last use in a file, which must be there
            caches[name].read(kernel)
    return caches


def cpu(cache: Cache, operation: str, kernel: Kernel) -> float:
    """Seconds of CPU of one operation and of the threads that it began."""
    use(cache)
    function = getattr(cache, operation)
    start = time.process_time()
    function(kernel)
    seconds = time.process_time() - start
    for thread in threading.enumerate():
        if thread.name == "gpucache-limit":
            thread.join()
            seconds = time.process_time() - start
    return seconds


def in_turns(caches: dict[str, Cache], operation: str, kernels: Iterable[Kernel]) -> None:
    """Measure and print one operation, a round for each kernel."""
    spent: dict[str, list[float]] = {name: [] for name in caches}
    for kernel in kernels:
        for name in DRAW.sample(list(caches), len(caches)):
            spent[name].append(cpu(caches[name], operation, kernel))
    told(spent)


def put_at_the_limit(caches: dict[str, Cache], kernels: list[Kernel], rounds: int) -> None:
    before = {name: cache.count() for name, cache in caches.items()}
    spent: dict[str, list[float]] = {name: [] for name in caches}
    for _ in range(rounds):
        for name, cache in caches.items():
            puts = [
                cpu(cache, "put", DRAW.choice(kernels).again())
                for _ in range(1 if name in SCANNING else 10)
            ]
            spent[name].append(statistics.mean(puts))
    told(spent)
    for name, cache in caches.items():
        put = rounds * (1 if name in SCANNING else 10)
        evicted = before[name] + put - cache.count()
        print(f"  {name}: {put} puts evicted {evicted}")
        assert evicted > 0, f"{name} was not at its limit"


def told(spent: dict[str, list[float]]) -> None:
    """Ours first; each peer with the ratios of ours to the peer's."""
    for name, samples in spent.items():
        median, mean = statistics.median(samples), statistics.mean(samples)
        taken = f"  {name:<12} median {short(median)}  mean {short(mean)}  n={len(samples):<5}"
        if name != OURS:
            means = statistics.mean(spent[OURS]) / mean
            taken += f" ours is {ratio(spent[OURS], samples):<20} means {means:.2g}x"
        print(taken, flush=True)


def processes(commands: dict[str, list[str]], rounds: int) -> None:
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds = process.run(command).cpu_s
            if number > 0:  # the first round has warmed the rest
                spent[name].append(seconds)
    told(spent)


def listings(base: str, names: list[str]) -> dict[str, list[str]]:
    bare = "import os, sys; os.listdir(sys.argv[1])"
    commands = {
        OURS: [sys.executable, "-m", "gpucache", "ls", "--json", "--root", f"{base}/{OURS}"]
    }
    commands["bare Python"] = [sys.executable, "-c", bare, f"{base}/{OURS}/triton/0"]
    for name in names:
        program = PEERS[name].listing
        if program is not None:
            commands[name] = [sys.executable, "-c", program, f"{base}/{name}"]
    if MCM in names:
        mcm = str(Path(sys.executable).with_name("mcm"))
        print(
            f"  mcm index, once: {short(process.run([mcm, 'index', '--cache-dir', f'{base}/{MCM}']).cpu_s)}"
        )
        commands[MCM] = [mcm, "list", "--cache-dir", f"{base}/{MCM}"]
    return commands


def imports(names: list[str]) -> dict[str, list[str]]:
    modules = {OURS: "gpucache.triton", "our names": "gpucache"} | {
        name: PEERS[name].module for name in names
    }
    commands = {
        name: [sys.executable, "-c", f"import {module}"] for name, module in modules.items()
    }
    return commands | {"bare Python": [sys.executable, "-c", "pass"]}


def main() -> None:
    parser = options_of(__doc__, "only prove that it runs, with what is installed")
    parser.add_argument("--entries", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument(
        "--root", help="where to make the caches (default: /dev/shm where there is one)"
    )
    options = parser.parse_args()
    entries, rounds = (50, 4) if options.smoke else (options.entries, options.rounds)
    where = options.root or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    with tempfile.TemporaryDirectory(dir=where) as directory:
        base = os.path.realpath(directory)
        os.environ["MCM_DATA_DIR"] = f"{base}/mcm-data"  # it makes this when it is imported
        print(environment())
        names = list(installed())
        print(f"{entries} kernels")
        measure(base, names, entries, rounds)


def measure(base: str, names: list[str], entries: int, rounds: int) -> None:
    keys = tree.make(f"{base}/{OURS}", entries, 1)
    kernels = [Kernel(key, tree.contents(f"{base}/{OURS}", key)) for key in keys]
    without_limit(base, names, kernels, rounds)
    for name in (OURS, *names):
        shutil.rmtree(f"{base}/{name}")
    tree.make(f"{base}/limit/{OURS}", entries, 1)
    at_the_limit(
        f"{base}/limit", [name for name in names if name in (CUDA, JAX, DISK)], kernels, rounds
    )


def without_limit(base: str, names: list[str], kernels: list[Kernel], rounds: int) -> None:
    caches = unlimited(base, names, kernels)
    gc.disable()
    print("list, a whole process")
    processes(listings(base, names), max(2, rounds // 50))
    print("import, a whole process")
    processes(imports(names), max(2, rounds // 20))
    cpu(caches[OURS], "put", kernels[0].again())  # the first one counts the store
    operations({name: cache for name, cache in caches.items() if name != MCM}, kernels, rounds)
    if MCM in caches:
        print("in turns with MCM alone")
        operations({name: caches[name] for name in (OURS, MCM)}, kernels, rounds)


def operations(caches: dict[str, Cache], kernels: list[Kernel], rounds: int) -> None:
    used = DRAW.sample(kernels, min(100, len(kernels) // 2))
    print("get and read, first")
    in_turns(caches, "read", used)
    managed = {name: cache for name, cache in caches.items() if isinstance(cache, Managed)}
    print("get")
    in_turns(managed, "get", DRAW.choices(used, k=rounds))
    print("get and read")
    in_turns(caches, "read", DRAW.choices(used, k=rounds))
    print("put, without a limit")
    in_turns(caches, "put", [kernel.again() for kernel in DRAW.choices(used, k=rounds)])


def at_the_limit(base: str, names: list[str], kernels: list[Kernel], rounds: int) -> None:
    caches = limited(base, names, kernels)
    used = DRAW.sample(kernels, min(100, len(kernels) // 2))  # the others are to be evicted
    for kernel in used:
        cpu(caches[OURS], "read", kernel)
    print("get and read, with a limit")
    in_turns(caches, "read", DRAW.choices(used, k=rounds))
    print("put at the limit (the mean of ten puts; one with cuda.core and JAX)")
    put_at_the_limit(caches, kernels, max(3, rounds // 3))


if __name__ == "__main__":
    main()
