"""What stands in Triton's and the user's way to a GPU during a replay. Imports no Triton."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class NoGpuError(AttributeError, RuntimeError):
    """What code that runs during a replay has asked of a GPU. An `AttributeError`, so that ``hasattr`` says no."""


class NoGpu:
    """Triton's active driver where no GPU may be touched: it knows the target, and nothing of a device.

    As `triton.backends.driver.DriverBase`. Code asks for the target while its module is imported, and functions of
    `triton.language` while a kernel is compiled; Triton 3.2 asks for a benchmarker for each ``@triton.autotune``.
    """

    def __init__(self, target: Any) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        """Yes: else Triton would look for another driver."""
        return True

    def get_current_target(self) -> Any:
        """The target of the replay."""
        return self.target

    def get_current_device(self) -> int:
        """The first device, which nobody can use."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Do nothing."""

    def get_current_stream(self, device: int) -> int:
        """The default stream, on which nothing is launched."""
        return 0

    def get_active_torch_device(self) -> Any:
        """The torch device by name, if torch is imported; to make a tensor on it fails."""
        torch = sys.modules.get("torch")
        if torch is None:
            raise NoGpuError("torch is not imported")
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> Callable[..., Any]:
        """What measures nothing: to call it fails."""
        return _no_benchmark

    def __getattr__(self, name: str) -> Any:
        raise NoGpuError(f"{name} of a GPU was asked for, and recipes are compiled without one")


def _no_benchmark(*_: object, **__: object) -> Any:
    raise NoGpuError("a kernel was to be launched, and recipes are compiled without a GPU")
