"""How many cores this process may use: those of its affinity, less where a control group limits its time."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GROUPS = "/sys/fs/cgroup"
_OWN = "/proc/self/cgroup"


def usable_cores() -> int:
    """So many processes can compute at once here, at least 1.

    Read are the affinity, and the quotas of this process's control group and of all above it (cgroups(7): ``cpu.max``
    of version 2, ``cpu.cfs_quota_us`` of version 1), as far as they are mounted where they usually are.
    """
    count = float(_by_affinity())
    for quota in _quotas():
        count = min(count, quota)
    return max(1, int(count))


def _by_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """The cores' worth of time that each control group above this process may take."""
    for line in _text(_OWN).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _along(_GROUPS, path, _quota_of_2)
        elif "cpu" in controllers.split(","):
            yield from _along(f"{_GROUPS}/{controllers}", path, _quota_of_1)
            yield from _along(f"{_GROUPS}/cpu", path, _quota_of_1)


def _along(top: str, path: str, read: Callable[[str], float | None]) -> Iterator[float]:
    """The quotas of a group and of those above it. In a container the group may be mounted as the topmost."""
    steps = path.strip("/").split("/")
    for count in range(len(steps), -1, -1):
        quota = read("/".join((top, *steps[:count])))
        if quota is not None:
            yield quota


def _quota_of_2(group: str) -> float | None:
    words = _text(f"{group}/cpu.max").split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_of_1(group: str) -> float | None:
    quota = _text(f"{group}/cpu.cfs_quota_us").strip()
    return _ratio(quota, _text(f"{group}/cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """The quota in cores; None where there is none: ``max`` of version 2, -1 of version 1."""
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
