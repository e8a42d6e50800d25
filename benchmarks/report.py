"""What every benchmark prints: where it ran, and its figures as medians, 95th percentiles and ratios."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence


def environment() -> str:
    """One line about the machine; figures of two machines cannot be compared, ratios perhaps."""
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
            "unknown CPU",
        )
    return f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} x {model}"


def line(name: str, seconds: Sequence[float], baseline: float | None = None) -> str:
    """A name, median and 95th percentile with a fitting unit, and the median's ratio to ``baseline``."""
    median = statistics.median(seconds)
    p95 = sorted(seconds)[max(0, -(-len(seconds) * 95 // 100) - 1)]
    ratio = "" if baseline is None else f"{median / baseline:9.2f}x"
    return f"{name:<44} median {_short(median)}  p95 {_short(p95)}  n={len(seconds):<5}{ratio}"


def _short(seconds: float) -> str:
    for unit, factor in (("s ", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:8.2f} {unit}"
    return f"{seconds * 1e9:8.2f} ns"
