"""What does the limit cost a writer, in a store of 5,000 kernels with one view each?

A put is what Triton asks of a manager after a compile: construct it, miss, ``put`` each of seven files, ``put_group``.
Timed are puts in turns without a limit and with one that is far away; then puts at the limit, each of which may begin
a turn of eviction in a thread. *Amortised* is the time of all puts at the limit, with every turn waited for, less that
of as many without a limit, a put; beside it, what the system calls of a *bare delete* of one entry and view take.

Does not measure: a busy disk (with ``--root /dev/shm`` it is our own work alone), several processes at once, a cold
page cache, network file systems, or kernels larger than a vector addition (35 KB).

Repeat: python benchmarks/bench_limit.py [--smoke] [--root DIRECTORY]
"""

from __future__ import annotations

import base64
import gc
import os
import random
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import tree
from report import environment, line, options_of

from gpucache.store.counting import counted, stored_entries
from gpucache.store.size import count_anew_later, updated
from gpucache.triton import manager as plugin
from gpucache.triton.location import Location

DRAW = random.Random("limit")


def files(root: str) -> dict[str, bytes]:
    """What a compile leaves: the files of a kernel that is there, under one name."""
    entry = min(stored(root))
    with os.scandir(entry) as found:
        named = [item for item in found if not item.name.startswith("__")]
    return {
        f"kernel{os.path.splitext(item.name)[1]}": Path(item.path).read_bytes() for item in named
    }


def put(place: Location, contents: dict[str, bytes]) -> tuple[float, float]:
    """Seconds of one put, and of all that happens until its turn of eviction, if any, has ended."""
    plugin._locations[os.environ["TRITON_CACHE_DIR"]] = place
    key = base64.b32encode(DRAW.randbytes(32)).decode().rstrip("=")
    start = time.perf_counter()
    manager = plugin.DeviceCacheManager(key)
    assert manager.get_group("kernel.json") is None
    group = {name: manager.put(data, name) for name, data in contents.items()}
    manager.put_group("kernel.json", group)
    spent = time.perf_counter() - start
    del manager
    thread = place.limit._thread
    if thread is not None:
        thread.join()
    return spent, time.perf_counter() - start


def place(**limits: str) -> Location:
    """The plug-in's place, once with each limit."""
    for name in limits:
        os.environ[name] = limits[name]
    plugin._locations.clear()
    return plugin.current_location()


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--root", help="where to make the cache (default: a temporary directory)")
    options = parser.parse_args()
    entries, rounds = (50, 20) if options.smoke else (5000, 2000)
    print(environment())
    with tempfile.TemporaryDirectory(dir=options.root) as root:
        tree.make(root, entries, 1)
        os.sync()
        os.environ |= {
            "GPUCACHE_DIR": root,
            "TRITON_CACHE_DIR": f"{root}/triton/0",
            "GPUCACHE_SHARE": "1",
        }
        contents = files(root)
        gc.disable()
        print(f"{entries} entries, 1 view of each")
        start = time.perf_counter()
        size = counted(root)
        print(line("counting the store, once a day", [time.perf_counter() - start]))
        none, far = place(GPUCACHE_MAX_SIZE="0"), place(GPUCACHE_MAX_SIZE="1000GiB")
        put(far, contents)  # which counts the store
        spent: dict[str, list[float]] = {
            "a put without a limit": [],
            "a put far from the limit": [],
        }
        for _ in range(rounds // 4):
            spent["a put without a limit"].append(put(none, contents)[0])
            spent["a put far from the limit"].append(put(far, contents)[0])
        baseline = statistics.median(spent["a put without a limit"])
        for name, samples in spent.items():
            print(line(name, samples, baseline))
        at_the_limit(root, size, none, contents, rounds, baseline)
    with suppress(KeyError):
        del os.environ["GPUCACHE_MAX_SIZE"]


def at_the_limit(
    root: str, size: int, none: Location, contents: dict[str, bytes], rounds: int, baseline: float
) -> None:
    near = place(GPUCACHE_MAX_SIZE=str(size))
    start, keys = (
        time.perf_counter(),
        [os.path.basename(path) for path in stored(root)[: rounds // 10]],
    )
    tree.bare_delete(root, keys)
    print(
        line("bare delete of one entry and its view", [(time.perf_counter() - start) / len(keys)])
    )
    count_anew_later(root)
    put(near, contents)
    before, cpu = len(stored(root)), time.process_time()
    samples = [put(near, contents) for _ in range(rounds)]
    cpu = time.process_time() - cpu
    evicted = before + rounds - len(stored(root))
    said = f"the total is {updated(root, 0).size_bytes} bytes, counted anew {counted(root)}"
    plain_cpu = time.process_time()
    plain = [put(none, contents) for _ in range(rounds)]
    plain_cpu = time.process_time() - plain_cpu
    print(line("a put at the limit", [one for one, _ in samples], baseline))
    print(line("a put without one, as many", [one for one, _ in plain], baseline))
    print(line("the longest turn", [max(whole - one for one, whole in samples)]))
    extra = (sum(whole for _, whole in samples) - sum(whole for _, whole in plain)) / rounds
    print(f"  {evicted} entries evicted by {rounds} puts; {said}")
    print(
        f"  amortised, a put: {(cpu - plain_cpu) / rounds * 1e6:.0f} us of processor, {extra * 1e6:.0f} us of clock"
    )


def stored(root: str) -> list[str]:
    return list(stored_entries(root))


if __name__ == "__main__":
    main()
