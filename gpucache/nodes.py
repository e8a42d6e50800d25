"""What the kernel shows of the GPUs without asking NVML: the device nodes."""

from __future__ import annotations

import os
import re

DEV = "/dev"


def driver_loaded() -> bool:
    """Whether the NVIDIA driver is there: its control node exists."""
    return os.path.exists(os.path.join(DEV, "nvidiactl"))


def openable_gpus() -> int | None:
    """How many GPUs this process may open; None where there are no nodes to count (WSL, or no GPU at all).

    Opens nothing: ``access(2)`` asks the file's mode and the device cgroup alike (Linux `fs/namei.c`,
    `inode_permission`).
    """
    try:
        nodes = [name for name in os.listdir(DEV) if re.fullmatch(r"nvidia[0-9]+", name)]
    except OSError:
        return None
    return sum(os.access(os.path.join(DEV, name), os.R_OK | os.W_OK) for name in nodes) if nodes else None
