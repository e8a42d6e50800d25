"""How long do waiters sleep after the lock is freed, and what does waiting cost?

Seven threads' worth of processes wait for one key's lock; the holder notes the moment it frees it, each waiter the
moment `wait` returns (one clock, `CLOCK_MONOTONIC`, for all processes). CPU is that of a waiter per second waited.

Does not measure: what the waiters do then (they look into the store), or ranks that compile meanwhile.

Repeat: python benchmarks/bench_contention.py [--smoke]
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time

from report import environment, line, options_of

from gpucache.store.key_lock import KeyLock


def waiter(path: str, barrier: object, results: object, rounds: int) -> None:
    for _ in range(rounds):
        barrier.wait()
        began, cpu = time.monotonic(), time.process_time()
        assert KeyLock(path).wait(30.0, began + 60.0)
        woke = time.monotonic()
        results.put((woke, (time.process_time() - cpu) / (woke - began)))
        barrier.wait()


def main() -> None:
    parser = options_of(__doc__)
    waiters, rounds, held_s = (2, 1, 0.2) if parser.parse_args().smoke else (7, 20, 1.0)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(waiters + 1), context.Queue()
    delays, costs = [], []
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/key.lock"
        children = [
            context.Process(target=waiter, args=(path, barrier, results, rounds))
            for _ in range(waiters)
        ]
        for child in children:
            child.start()
        for _ in range(rounds):
            lock = KeyLock(path)
            assert lock.try_acquire(sys._getframe(), "benchmark")
            barrier.wait()
            time.sleep(held_s)
            freed = time.monotonic()
            lock.release()
            for _ in range(waiters):
                woke, cost = results.get()
                delays.append(woke - freed)
                costs.append(cost)
            barrier.wait()
        for child in children:
            child.join()
            assert child.exitcode == 0
    print(environment())
    delays.sort()
    print(
        line(f"woken after the release, {waiters} waiters", delays)
        + f"  p99 {delays[len(delays) * 99 // 100] * 1e3:.2f} ms"
    )
    print(f"CPU per second waited: median {sorted(costs)[len(costs) // 2] * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
