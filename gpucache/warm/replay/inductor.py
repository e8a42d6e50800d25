"""What a module that TorchInductor has generated needs, so that it can be executed where there is no GPU."""

from __future__ import annotations

import importlib

_SETTERS = ("set_driver_to_gpu", "set_driver_to_cpu")


def leave_driver_alone() -> None:
    """Have generated modules leave Triton's driver as it is; imports torch, which each of them imports.

    Each calls `set_driver_to_gpu` as it is executed, which raises where no GPU is found (`torch/_inductor/runtime/
    triton_helpers.py` of torch 2.13.0); to compile, no driver is needed. For processes that launch nothing.

    Raises:
        Exception: whatever the import of torch raises, but for one that is not there: the module itself will tell.
    """
    try:
        helpers = importlib.import_module("torch._inductor.runtime.triton_helpers")
    except ModuleNotFoundError:
        return
    for name in _SETTERS:
        if hasattr(helpers, name):
            setattr(helpers, name, _leave)


def _leave() -> None:
    """Do nothing."""
