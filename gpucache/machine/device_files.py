"""Which GPUs this process may open, by the device files ``/dev/nvidia*``: NVML is not asked, and no GPU is opened."""

from __future__ import annotations

import os
import re

from gpucache.values import Value

DEV = "/dev"
PROC = "/proc/driver/nvidia/gpus"
_READ_AND_WRITE = os.R_OK | os.W_OK
_MOST_DIGITS = 6


class DeviceFile(Value):
    """The file ``/dev/nvidia<minor>`` of a GPU, which this process may open."""

    minor: int
    uuid: str | None
    """The GPU's UUID, as the kernel module states it; None where the module states none (for a GPU that nobody has used
    since the driver came up)."""


def control_file() -> str:
    """The path of the driver's control file, ``/dev/nvidiactl``."""
    return os.path.join(DEV, "nvidiactl")


def driver_loaded() -> bool:
    """Whether this machine has the NVIDIA driver: whether the driver's control file exists.

    Discovery and the loading of a record both go by this: where it is true, fake devices are made only on request.
    """
    return os.path.exists(control_file())


def openable_gpus() -> tuple[DeviceFile, ...] | None:
    """The GPUs that this process may open; None where there are no device files of GPUs (WSL, or no GPU at all).

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
        if os.access(path, _READ_AND_WRITE):
            uuid = uuids.get(minor)
            openable.append(DeviceFile(minor, uuid))
    return tuple(openable)


def _minors(names: list[str]) -> list[int]:
    """The numbers of the GPUs among the names in ``/dev``: of ``nvidia0``, but not of ``nvidiactl``."""
    minors = []
    for name in names:
        if not name.startswith("nvidia"):  # most files are of other devices
            continue
        number = name.removeprefix("nvidia")
        is_number = number.isascii() and number.isdigit()
        if is_number and len(number) <= _MOST_DIGITS:
            minors.append(int(number))
    return sorted(minors)


def _uuids() -> dict[int, str]:
    """The UUID of each GPU by its minor number; the file ``information`` of each GPU has a line for either."""
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
        uuid_line = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]{36})\s*$", text, re.MULTILINE)
        minor_line = re.search(r"^Device Minor:\s*([0-9]{1,6})\s*$", text, re.MULTILINE)
        if uuid_line and minor_line:
            minor = int(minor_line[1])
            known[minor] = uuid_line[1]
    return known
