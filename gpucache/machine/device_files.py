"""Which GPUs this process may open, from the kernel alone: without NVML, and without opening any."""

from __future__ import annotations

import os
import re

from gpucache.values import Value

DEV = "/dev"
PROC = "/proc/driver/nvidia/gpus"
_MOST_DIGITS = 6


class DeviceFile(Value):
    """A GPU's device node that this process may open."""

    minor: int
    uuid: str | None
    """As the kernel module tells it; None where it does not (a GPU that nobody has used since the driver came up)."""


def driver_loaded() -> bool:
    """Whether the NVIDIA driver is there: its control node exists."""
    return os.path.exists(os.path.join(DEV, "nvidiactl"))


def openable_gpus() -> tuple[DeviceFile, ...] | None:
    """The GPUs that this process may open; None where there are no nodes to look at (WSL, or no GPU at all).

    ``access(2)`` asks the file's mode and the device cgroup alike (Linux `fs/namei.c`, `inode_permission`).
    """
    try:
        suffixes = [name[len("nvidia") :] for name in os.listdir(DEV) if name.startswith("nvidia")]
    except OSError:
        return None
    minors = sorted(int(suffix) for suffix in suffixes if _is_number(suffix))
    if not minors:
        return None
    uuids = _uuids()
    may_open = [
        minor
        for minor in minors
        if os.access(os.path.join(DEV, f"nvidia{minor}"), os.R_OK | os.W_OK)
    ]
    return tuple(DeviceFile(minor, uuids.get(minor)) for minor in may_open)


def _is_number(suffix: str) -> bool:
    """Whether this follows ``nvidia`` in the name of a GPU's node; ``ctl`` and ``-uvm`` are of the driver's own."""
    return suffix.isascii() and suffix.isdigit() and len(suffix) <= _MOST_DIGITS


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
