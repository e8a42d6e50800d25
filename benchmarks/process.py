"""What a whole process takes: wall time, CPU time and memory, as the system accounts them when it ends."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from report import ratio, short


class Spent(NamedTuple):
    """What one run took."""

    wall_s: float
    cpu_s: float
    """User and system, of the process and of the children that it waited for."""
    rss_bytes: int
    """The most memory held at once. Linux never says less than the parent held when it started the process."""


def run(
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    copies: int = 1,
    expected: Sequence[int] = (0,),
) -> Spent:
    """Start so many copies at once, and wait for all: wall time until the last has ended, the sum of their CPU time.

    Raises:
        subprocess.CalledProcessError: one ended with a code that is not expected. What they print is dropped.
    """
    start, cpu_s, rss_bytes = time.perf_counter(), 0.0, 0
    quiet = subprocess.DEVNULL
    started = [
        subprocess.Popen(command, env=environ, stdin=quiet, stdout=quiet, stderr=quiet)
        for _ in range(copies)
    ]
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s += usage.ru_utime + usage.ru_stime
        rss_bytes = max(rss_bytes, usage.ru_maxrss * 1024)
    wall_s = time.perf_counter() - start
    for process in started:
        if process.returncode not in expected:
            raise subprocess.CalledProcessError(process.returncode, command)
    return Spent(wall_s, cpu_s, rss_bytes)


def line(
    name: str, samples: Sequence[Spent], baseline: Sequence[Spent], *, memory: bool = False
) -> str:
    """A name; medians of wall and CPU time, and the most memory; ratios to the baseline of the same round.

    Each ratio is a median, with the quartiles in brackets.
    """
    walls, bare_walls = [one.wall_s for one in samples], [one.wall_s for one in baseline]
    cpus, bare_cpus = [one.cpu_s for one in samples], [one.cpu_s for one in baseline]
    taken = f"wall {short(statistics.median(walls))}  CPU {short(statistics.median(cpus))}"
    if memory:
        taken += f" {max(one.rss_bytes for one in samples) / 2**20:4.0f} MiB"
    return f"{name:<36} {taken}  wall {ratio(walls, bare_walls):<20} CPU {ratio(cpus, bare_cpus)}"
