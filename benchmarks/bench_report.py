"""What does it cost to see, count and bound a cache of 5,000 kernels, beside a bare walk and a bare delete of it?

Two trees: each kernel with one view, and with eight. *Bare walk* is `os.scandir` and one `stat` of every file, no more.
*Scan* is `gpucache.report.scan` in this process; ``ls``, ``du`` and ``prune`` are whole processes, start-up included.
*Prune* removes the less recently used half; the *bare delete* is of the other half of the same tree, as many entries
and views, with a scan of each directory and nothing more. What prune says it freed is compared with ``du`` before and
after.

Does not measure: a cold page cache, network file systems, kernels larger than a vector addition (35 KB), a cache in use
meanwhile, or what it costs a disk to free blocks long written (milliseconds a file, where it is mounted ``discard``).
ext4 makes files slowly for minutes after many were deleted: ``--root /dev/shm`` is quicker and steadier.

Repeat: python benchmarks/bench_report.py [--smoke] [--root DIRECTORY]
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
from collections.abc import Callable
from typing import Any

import tree
from report import environment, line, options_of
from walk import bare_walk


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def command(root: str, *words: str) -> tuple[dict[str, Any], float]:
    """What ``gpucache … --json`` said, and the seconds that the process took."""
    call = [sys.executable, "-m", "gpucache", *words, "--json", "--root", root]
    start = time.perf_counter()
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - start
    return json.loads(done.stdout), seconds


def looking(root: str, entries: int, rounds: int) -> None:
    from gpucache.report.cache_report import scan

    files, size = bare_walk(root)
    print(f"  {files} files, {size / 2**20:.0f} MiB of logical size")
    walks = [timed(lambda: bare_walk(root)) for _ in range(rounds)]
    walk = statistics.median(walks)
    print(line("bare walk", walks))
    print(line("report.scan", [timed(lambda: scan(root)) for _ in range(rounds)], walk))
    assert len(command(root, "ls")[0]["entries"]) == entries
    for word in ("ls", "du"):
        seconds = [command(root, word)[1] for _ in range(rounds)]
        print(line(f"gpucache {word} --json, whole process", seconds, walk))


def physical(root: str) -> int:
    return command(root, "du")[0]["all"]["physical_bytes"]


def pruning(root: str, entries: int, views: int, rounds: int) -> None:
    """Each round makes a tree, has the older half pruned, and deletes the other half barely."""
    half, walks, deletes, prunes = entries // 2, [], [], []
    for _ in range(rounds):
        keys = tree.make(root, entries, views)
        before = physical(root)
        walks.append(timed(lambda: bare_walk(root)))
        said, seconds = command(root, "prune", "--max-entries", str(half), "--yes")
        removed, freed = said["removed"], before - physical(root)
        prunes.append(seconds)
        assert removed["entries"] == entries - half
        assert removed["physical_bytes"] == freed, (removed, freed)
        assert set(os.listdir(f"{root}/triton/0")) == set(keys[-half:])
        deletes.append(timed(lambda keys=keys: tree.bare_delete(root, keys[-half:])))
        shutil.rmtree(root)
    print(line(f"bare delete of {half} entries", deletes))
    bare = [walk + delete for walk, delete in zip(walks, deletes, strict=True)]
    print(line("gpucache prune --max-entries, whole process", prunes, statistics.median(bare)))
    print(f"  prune said that it freed {removed['physical_bytes']} bytes, and du has as many fewer")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--root", help="where to make the caches (default: a temporary directory)")
    options = parser.parse_args()
    entries, rounds, prunes = (50, 1, 1) if options.smoke else (5000, 5, 3)
    print(environment())
    with tempfile.TemporaryDirectory(dir=options.root) as directory:
        for views in (1, 8):
            root = f"{directory}/root"
            print(f"{entries} entries, {views} view{'s' * (views > 1)} of each")
            print(
                line(
                    "making the tree",
                    [timed(lambda root=root, views=views: tree.make(root, entries, views))],
                )
            )
            looking(root, entries, rounds)
            shutil.rmtree(root)
            pruning(root, entries, views, prunes)


if __name__ == "__main__":
    main()
