"""What every benchmark has: `--smoke`; and what it prints: where it ran, medians, 95th percentiles and ratios."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Sequence


def options_of(
    description: str | None, smoke: str = "only prove that it runs"
) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line, which adds options of its own; ``smoke`` is the help of `--smoke`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help=smoke)
    return parser


def environment() -> str:
    """One line about the machine; figures of two machines cannot be compared, ratios perhaps."""
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
            "unknown CPU",
        )
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} x {model}, {load}"


def line(name: str, seconds: Sequence[float], baseline: float | None = None) -> str:
    """A name, median and 95th percentile with a fitting unit, and the median's ratio to ``baseline``."""
    median = statistics.median(seconds)
    p95 = sorted(seconds)[max(0, -(-len(seconds) * 95 // 100) - 1)]
    ratio = "" if baseline is None else f"{median / baseline:9.2f}x"
    return f"{name:<44} median {short(median)}  p95 {short(p95)}  n={len(seconds):<5}{ratio}"


def ratio(samples: Sequence[float], baseline: Sequence[float]) -> str:
    """How many times the baseline, median and quartiles, where both took turns: each is divided by its neighbour."""
    ratios = [sample / bare for sample, bare in zip(samples, baseline, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{_times(median)}x ({_times(low)}-{_times(high)})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def short(seconds: float) -> str:
    """Eight figures wide, with the unit in which they are at least one."""
    for unit, factor in (("s ", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:8.2f} {unit}"
    return f"{seconds * 1e9:8.2f} ns"
