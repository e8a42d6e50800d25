"""Which GPUs this process may open, from the kernel alone: without NVML, and without opening any."""

from __future__ import annotations

import os
import re

from gpucache.values import Value

DEV = "/dev"
PROC = "/proc/driver/nvidia/gpus"


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
        found = [re.fullmatch(r"nvidia([0-9]{1,6})", name) for name in os.listdir(DEV)]
    except OSError:
        return None
    minors = sorted(int(match[1]) for match in found if match)
    if not minors:
        return None
    uuids = _uuids()
    return tuple(
        DeviceFile(minor, uuids.get(minor))
        for minor in minors
        if os.access(os.path.join(DEV, f"nvidia{minor}"), os.R_OK | os.W_OK)
    )


def _uuids() -> dict[int, str]:
    """Minor number to UUID, from the lines ``GPU UUID:`` and ``Device Minor:`` of each GPU's ``information``."""
    known: dict[int, str] = {}
    try:
        places = os.listdir(PROC)
    except OSError:
        return known
    for place in places:
        try:
            with open(
                os.path.join(PROC, place, "information"), encoding="utf-8", errors="replace"
            ) as file:
                text = file.read(4096)
        except OSError:
            continue
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]{36})\s*$", text, re.MULTILINE)
        minor = re.search(r"^Device Minor:\s*([0-9]{1,6})\s*$", text, re.MULTILINE)
        if uuid and minor:
            known[int(minor[1])] = uuid[1]
    return known
