"""Which GPUs this process may open, as the kernel tells it: without asking NVML, and without opening any GPU."""

from __future__ import annotations

import os
import re

from gpucache.values import Value

DEV = "/dev"
PROC = "/proc/driver/nvidia/gpus"
_MOST_DIGITS = 6


class DeviceFile(Value):
    """The file ``/dev/nvidia<minor>`` of a GPU, which this process may open."""

    minor: int
    uuid: str | None
    """As the kernel module tells it; None where it does not (a GPU that nobody has used since the driver came up)."""


def driver_loaded() -> bool:
    """Whether the NVIDIA driver is there: its control node exists."""
    return os.path.exists(os.path.join(DEV, "nvidiactl"))


def openable_gpus() -> tuple[DeviceFile, ...] | None:
    """The GPUs that this process may open; None where there are no such files to look at (WSL, or no GPU at all).

    ``access(2)`` asks the file's mode and the device cgroup alike (Linux `fs/namei.c`, `inode_permission`).
    """
    try:
        names = os.listdir(DEV)
    except OSError:
        return None
    minors = _minors(names)
    if not minors:
        return None
    uuids = _uuids()
    openable = []
    for minor in minors:
        path = os.path.join(DEV, f"nvidia{minor}")
        if os.access(path, os.R_OK | os.W_OK):
            openable.append(DeviceFile(minor, uuids.get(minor)))
    return tuple(openable)


def _minors(names: list[str]) -> list[int]:
    """The numbers of the GPUs among the names in ``/dev``: of ``nvidia0``, but not of ``nvidiactl``."""
    minors = []
    for name in names:
        if not name.startswith("nvidia"):  # most are of something else
            continue
        number = name.removeprefix("nvidia")
        if number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS:
            minors.append(int(number))
    return sorted(minors)


def _uuids() -> dict[int, str]:
    """Minor number to UUID, from the lines ``GPU UUID:`` and ``Device Minor:`` of each GPU's ``information``."""
    known: dict[int, str] = {}
    try:
        bus_ids = os.listdir(PROC)
    except OSError:
        return known
    for bus_id in bus_ids:
        path = os.path.join(PROC, bus_id, "information")
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(4096)
        except OSError:
            continue
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]{36})\s*$", text, re.MULTILINE)
        minor = re.search(r"^Device Minor:\s*([0-9]{1,6})\s*$", text, re.MULTILINE)
        if uuid and minor:
            known[int(minor[1])] = uuid[1]
    return known
