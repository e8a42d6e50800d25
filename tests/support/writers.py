"""Put kernels as Triton does, in this process or in one that ends right after."""

from __future__ import annotations

import os

from gpucache.store import limit
from gpucache.triton.manager import DeviceCacheManager
from support.processes import PATIENCE_S
from support.trees import KERNEL


def put_kernel(key: str) -> dict[str, str]:
    """Miss and put a small kernel; where its files are."""
    manager = DeviceCacheManager(key)
    assert manager.get_group("add.json") is None
    group = {name: manager.put(data, name) for name, data in KERNEL.items()}
    manager.put_group("add.json", group)
    assert all(map(os.path.exists, group.values()))
    return group


def put_kernel_in_a_long_turn(key: str) -> None:
    """Put a kernel in a process whose turn of eviction no busy machine cuts short."""
    limit._TURN_S = PATIENCE_S
    put_kernel(key)
