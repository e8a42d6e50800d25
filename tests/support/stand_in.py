"""A stand-in for Triton's active driver, which says that there is a GPU where there is none.

Arguments are specialised and kernels are compiled as they would be; launches go nowhere.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

LOADED = (1, 1, 64, 0, 1024) if hasattr(triton, "knobs") else (1, 1, 64, 0)
"""Module, function, registers, spills, and since Triton 3.4 the most threads."""
SHARED_MEMORY = {80: 166912, 120: 101376}
"""Bytes of a block by architecture, where they are not those of an H100."""


def target_of(text: str) -> GPUTarget:
    """The target that a word names: ``sm_90``, ``gfx942``."""
    if text.startswith("gfx"):
        return GPUTarget("hip", text, 64)
    return GPUTarget("cuda", int(text.removeprefix("sm_")), 32)


class StandIn:
    """Triton's active driver (`triton.backends.driver.DriverBase`, 3.2 to 3.9) of a machine with one GPU."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.utils = types.SimpleNamespace(
            load_binary=lambda *_: LOADED,
            unload_module=lambda *_: None,
            get_device_properties=lambda _: {
                "max_shared_mem": SHARED_MEMORY.get(target.arch, 232448),
                "multiprocessor_count": 132,
                "warpSize": target.warp_size,
                "max_num_regs": 65536,
                "sm_clock_rate": 1980000,
                "mem_clock_rate": 2619000,
                "mem_bus_width": 5120,
            },
        )

    def launcher_cls(self, *_: object) -> Callable[..., None]:
        return lambda *_, **__: None

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(self.target.arch, 10)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        """Each configuration is launched, and none is faster."""

        def bench(launch: Callable[[], object], *_: object, **__: object) -> list[float]:
            launch()
            return [1.0, 1.0, 1.0]

        return bench


def stand_in(target: GPUTarget) -> None:
    """Put the stand-in in place; before a module with `triton.autotune` is imported, where Triton is 3.2."""
    triton.runtime.driver.set_active(StandIn(target))
