"""Sizes and times as people write them: parsed into bytes and seconds, and printed."""

from __future__ import annotations

import re

_SIZES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _SIZES[_letter] = 1024**_power
    _SIZES[f"{_letter}iB"] = 1024**_power
    _SIZES[f"{_letter}B"] = 1000**_power
_SECONDS = {
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
}
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-zA-Z]*)"
_DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([a-z]*)"


def parse_size(text: str) -> int:
    """How many bytes a text means: ``20GiB``, ``1.5G`` (powers of 1024, as of ``du -h``), ``20GB`` (of 1000), ``4096``.

    Raises:
        ValueError: the text is no such size.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.ASCII)
    if match is not None:
        number, unit = match.groups()
        unit = unit[:1].upper() + unit[1:]
        if unit in _SIZES:
            return int(float(number) * _SIZES[unit])
    raise ValueError(f"{text!r} is not a size like 20GiB, 500MB or 4096")


def parse_duration(text: str) -> float:
    """How many seconds a text means: ``30d``, ``12h``, ``15min``, ``2w``, ``90s``, ``0``.

    Raises:
        ValueError: the text is no such time.
    """
    match = re.fullmatch(_DURATION, text.strip(), re.ASCII)
    if match is not None:
        number, unit = match.groups()
        if unit in _SECONDS:
            return float(number) * _SECONDS[unit]
        if not unit and float(number) == 0:
            return 0.0
    raise ValueError(f"{text!r} is not a time like 30d, 12h, 15min or 90s")


def size(count: int) -> str:
    """A number of bytes as people read it: ``0 B``, ``38.2 KiB``, ``1.4 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(abs(value), 1) < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def ago(seconds: float) -> str:
    """How long ago something was, as people read it: ``3 d ago``, ``now``."""
    return f"{age(seconds)} ago" if seconds >= 1 else "now"


def age(seconds: float) -> str:
    """A time span as people read it, in its largest whole unit: ``3 d``, ``5 min``; ``now`` below a second."""
    for unit in ("d", "h", "min", "s"):
        length = _SECONDS[unit]
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
