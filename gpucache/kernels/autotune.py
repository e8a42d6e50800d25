"""What an autotuner has measured: the file ``K.autotune.json``, with each configuration that was tried and its timings.

Triton writes it where an ``@triton.autotune`` has ``cache_results=True``, or under ``TRITON_CACHE_AUTOTUNING=1``
(`check_disk_cache` of `runtime/autotuner.py`, 3.4.0, 3.6.0 and 3.9.0, each run; 3.2.0 keeps nothing on disk):
``{"key": [...], "configs_timings": [[{"kwargs": {...}, "num_warps": 4, ...}, [0.5, 0.4, 0.7]], ...]}``. A timing is
what ``do_bench`` gave: the median, the 20th and the 80th percentile in milliseconds, three infinities where the
configuration does not run; a ``do_bench`` of the program's own may give one number.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from gpucache.disk.reading import read
from gpucache.kernels.group import AUTOTUNE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MOST_BYTES = 4 * 2**20
"""A longer file is no result of an autotuner, and is not read: a configuration takes about 200 bytes."""

_APART = ("kwargs", "pre_hook")
"""Fields of a configuration that are no options of the compiler."""


class Configuration(NamedTuple):
    """One configuration that an autotuner has tried."""

    values: Mapping[str, Any]
    """The constants of the kernel by the names of its parameters, such as ``BLOCK_K``, as JSON has them."""
    options: Mapping[str, Any]
    """Options of the compiler, such as ``num_warps``; only those that the configuration says."""
    milliseconds: tuple[float, ...]
    """The median, then the 20th and the 80th percentile; or what the program measured. Infinite where it does not run.
    """

    @property
    def runs(self) -> bool:
        """Whether the device could run it."""
        return math.isfinite(self.milliseconds[0])


class TuningResult(NamedTuple):
    """What an autotuner has measured for one kernel, on one kind of device, for arguments of one kind."""

    key: tuple[str, ...]
    """The values of the arguments that the tuning depends on, and the types of all that have one, as texts."""
    configurations: tuple[Configuration, ...]
    """In the order in which they were tried; never empty."""

    @property
    def winner(self) -> Configuration:
        """The configuration that Triton takes: the fastest, of several such the first (`check_disk_cache`)."""
        return min(self.configurations, key=_timing)


def _timing(configuration: Configuration) -> tuple[float, ...]:
    return configuration.milliseconds


def tuning_result_in(directory: str, kernel: str) -> TuningResult | None:
    """The result in a key directory for the kernel of this name; None where there is none that can be read."""
    try:
        return parse(read(f"{directory}/{kernel}{AUTOTUNE}", MOST_BYTES))
    except (OSError, ValueError):
        return None


def parse(data: bytes) -> TuningResult:
    """Read the content of such a file, whoever wrote it.

    Raises:
        ValueError: it is none.
    """
    try:
        said = json.loads(data)
        timings = said["configs_timings"]
        found = [_configuration(config, timing) for config, timing in timings]
        key = tuple(map(str, said.get("key") or ()))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no result of an autotuner: {error}") from error
    if not found:
        raise ValueError("no result of an autotuner: it has no configuration")
    return TuningResult(key, tuple(found))


def _configuration(config: dict[str, Any], timing: object) -> Configuration:
    options = {}
    for name, value in config.items():
        if name not in _APART and value is not None:
            options[name] = value
    return Configuration(dict(config.get("kwargs") or {}), options, _milliseconds(timing))


def _milliseconds(timing: object) -> tuple[float, ...]:
    """The timing as numbers.

    Raises:
        ValueError: it has none, or something that is none.
    """
    numbers: list[Any] = timing if isinstance(timing, list) else [timing]
    found = []
    for number in numbers:
        if type(number) not in (int, float) or math.isnan(number):
            raise ValueError("no result of an autotuner: a timing is no number")
        found.append(float(number))
    if not found:
        raise ValueError("no result of an autotuner: a configuration has no timing")
    return tuple(found)
