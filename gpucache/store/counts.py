"""Counters as values: what is counted, per host, device directory and hour, and how the sums are kept in bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

NODE_COUNTERS = ("hits", "shared_hits", "misses", "waits", "errors_degraded")
"""The names of what is counted in whole numbers: kernels found in the own device directory; taken from the store; found
nowhere, and so compiled; waits for a compile of another process; failures of ours, after which the kernel was compiled.
"""
REMOTE_COUNTERS = (
    *("remote_hits", "remote_misses", "remote_errors", "remote_bad", "remote_bytes"),
    *("pulled", "pulled_bytes"),
    *("pushed", "push_errors", "pushed_bytes"),
)
"""The names of what is counted in whole numbers of a remote.

Asked for one kernel, after a miss: it had the kernel (which is a hit of the store as well from then on); it had not; it
did not answer, or not in time; it gave what no trusted key has signed, or other bytes; bytes received. Entries that
packs have brought, and bytes of these packs. Entries given to the remote, attempts that failed, and bytes sent.
"""
FALLBACK_COUNTERS = ("fallback_hits", "fallback_misses", "fallback_errors", "fallback_bytes")
"""The names of what is counted in whole numbers of the fallback.

Asked for one entry, after a miss: it had the entry (which is a hit of the store as well from then on); it had not; what
it had, or the fallback itself, was refused or could not be read or kept; bytes copied.
"""
EVICTION_COUNTERS = ("evicted", "evicted_bytes")
"""The names of what is counted of evictions: entries that a process has removed for the limit, and their bytes.

They stand at the device directory of the process whose turn it was, whichever directories had the entries.
"""
COUNTERS = NODE_COUNTERS + FALLBACK_COUNTERS + REMOTE_COUNTERS + EVICTION_COUNTERS
NODE_SECONDS = ("waited_s", "compiled_s", "saved_s")
"""The names of what is counted in seconds: the waits; the own compiles; the compiles of what the store gave instead."""
REMOTE_SECONDS = ("remote_s", "pull_s", "push_s")
"""The names of what is counted in seconds of a remote: asking for kernels, whatever came of it; pulling; pushing."""
FALLBACK_SECONDS = ("fallback_s",)
"""The name of what is counted in seconds of the fallback: asking and copying, whatever came of it."""
SECONDS = NODE_SECONDS + FALLBACK_SECONDS + REMOTE_SECONDS
HOUR_S = 3600
HOURS_KEPT = 14 * 24
"""For so many hours the sums of each hour are kept."""
ANY_TIME = 0
"""In the place of an hour: what was counted before the hours that are kept, or at a time that is not known."""
ANY_HOST = ""
"""In the place of a host: hosts that have counted nothing for 14 days, or that are not known."""
ELSEWHERE = "elsewhere"
"""In the place of a device directory: ones outside the root that have counted nothing for 14 days."""

_PARTS = 2**20
"""Sums of parts of this size are exact up to 272 years of seconds."""
_MOST = 1e18
"""No counter gets so far: a larger number in a file is nonsense, and would spoil the sums."""

_END_OF_CALENDARS = 253_402_300_800
"""The year 10,000, from which on C libraries and Python tell no date."""

Values = dict[str, float]
"""Counters by name."""


class Where(NamedTuple):
    """What a sum is about."""

    host: str
    """The name of the host, or `ANY_HOST`."""
    device: str
    """What `device_label` says of the device directory."""
    hour: int = ANY_TIME
    """Hours since the epoch, or `ANY_TIME`."""


Sums = dict[Where, Values]


def this_hour() -> int:
    """The hours since the epoch."""
    return int(time.time() // HOUR_S)


def device_label(root: str, directory: str) -> str:
    """What a device directory is called in sums: in its root as `CacheReport` names it, elsewhere by its whole path.

    So two directories elsewhere are told apart that have one base name. Both arguments are real paths.
    """
    if directory == root:
        return "."
    triton = f"{root}/triton"
    if directory == triton:
        return "triton"
    inner = directory.removeprefix(f"{triton}/")
    is_in_root = inner != directory and "/" not in inner
    return inner if is_in_root else directory


def add(sums: Sums, where: Where, values: object) -> None:
    """Add counters as they stood in a file to the sums; what makes no sense is left out."""
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        known = name in COUNTERS or name in SECONDS
        if known and isinstance(value, (int, float)) and 0 <= value < _MOST:
            total = sums.setdefault(where, {})
            total[name] = total.get(name, 0) + _exact(value)


def _exact(value: float) -> float:
    """A value to the microsecond, about: as multiples of a power of two, sums are the same in whatever order.

    Else a fold could make one less by its last bit, which a monitoring system takes for a restart of the counter.
    """
    return round(value * _PARTS) / _PARTS if isinstance(value, float) else value


def add_all(sums: Sums, more: Mapping[Where, Values]) -> None:
    """Add sums to sums."""
    for where, values in more.items():
        add(sums, where, values)


def add_up(sums: Mapping[Where, Values]) -> dict[str, Values]:
    """The sums of each device directory, over all hosts and hours."""
    whole: dict[str, Values] = {}
    for where, values in sums.items():
        total = whole.setdefault(where.device, {})
        for name, value in values.items():
            total[name] = total.get(name, 0) + value
    return whole


def encoded(sums: Sums) -> dict[str, dict[str, dict[str, Values]]]:
    """The sums as JSON has them: by host, in these by device directory, in these by hour."""
    said: dict[str, dict[str, dict[str, Values]]] = {}
    for (host, device, hour), values in sums.items():
        devices = said.setdefault(host, {})
        devices.setdefault(device, {})[str(hour)] = values
    return said


def parsed(said: object) -> Sums:
    """The sums that `encoded` has written; what makes no sense is left out."""
    sums: Sums = {}
    for host, devices in _items(said):
        for device, hours in _items(devices):
            for hour, values in _items(hours):
                where = Where(host, device, parsed_hour(hour))
                add(sums, where, values)
    return sums


def _items(said: object) -> list[tuple[str, object]]:
    return list(said.items()) if isinstance(said, dict) else []


def parsed_hour(said: object) -> int:
    """An hour as a file says it, a number or its text; `ANY_TIME` where that makes no sense."""
    text = str(said) if isinstance(said, int) and 0 <= said < 10**9 else said
    if isinstance(text, str) and len(text) <= 9 and text.isascii() and text.isdigit():
        return int(text)
    return ANY_TIME


def parsed_moment(said: Any) -> float:
    """A moment as a file says it, in seconds since the epoch.

    Raises:
        ValueError: no calendar has it, as JSON's ``NaN`` and ``Infinity``; or TypeError, OverflowError, of no number.
    """
    moment = float(said)
    if not 0 <= moment < _END_OF_CALENDARS:
        raise ValueError(said)
    return moment


def bounded(sums: Sums, now: int, fits: Callable[[Sums], bool], own: str = ANY_HOST) -> Sums:
    """The sums with the hours of the last 14 days, and with so much less of the detail that they fit.

    No total gets smaller. What gives way first is what has counted nothing for 14 days: the names of hosts (each pod
    has another), then of directories outside the root (each job may have another). Then the hours go, from the oldest
    on, and in the end all names. The host ``own`` keeps its name: what it exports never gets less. ``now`` is in hours
    since the epoch.
    """
    sums = _merged(sums, lambda where: _at_hour(where, now, HOURS_KEPT))
    recent = {where[:2] for where in sums if where.hour != ANY_TIME}
    hosts = {host for host, _ in recent} | {own}
    steps: list[Callable[[Where], Where]] = [
        lambda where: where if where.host in hosts else where._replace(host=ANY_HOST),
        lambda where: where if where[:2] in recent else _without_path(where),
        lambda where: _at_hour(where, now, HOURS_KEPT // 2),
        lambda where: _at_hour(where, now, 48),
        lambda where: where if where.host == own else where._replace(host=ANY_HOST),
        _without_path,
        lambda where: where._replace(hour=ANY_TIME),
        lambda where: Where(own if where.host == own else ANY_HOST, ELSEWHERE),
    ]
    for step in steps:
        if fits(sums):
            break
        sums = _merged(sums, step)
    return sums


def _merged(sums: Sums, step: Callable[[Where], Where]) -> Sums:
    """The sums once each of them is about what ``step`` says."""
    merged: Sums = {}
    for where, values in sums.items():
        add(merged, step(where), values)
    return merged


def _at_hour(where: Where, now: int, kept: int) -> Where:
    """The same without its hour, unless that is one of the last ``kept``; a day ahead is a clock that goes wrong."""
    is_kept = now - kept < where.hour <= now + 24
    return where if is_kept else where._replace(hour=ANY_TIME)


def _without_path(where: Where) -> Where:
    return where._replace(device=ELSEWHERE) if where.device.startswith("/") else where
