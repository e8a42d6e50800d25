"""What modules ask torch about the GPU while they are imported, answered where there is none.

Libraries choose by the compute capability as they are imported (flash-linear-attention 0.6.0, `fla/utils/hardware.py`),
and torch raises for whoever asks without a GPU, so that none of their kernels could be compiled. The answers are those
of the target for which recipes were recorded. What a kernel then reads of them is compared with what was recorded
(`replay.changes`). That there is a GPU is not claimed: `torch.cuda.is_available` says no. Imports no torch.
"""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from gpucache.kernels.recipe import Target

_MODULE = "torch.cuda"


class _Properties:
    """What torch tells of a GPU (`torch.cuda.get_device_properties`), as far as the target alone decides it."""

    def __init__(self, target: Target) -> None:
        self.name = _name(target)
        self.major, self.minor = _capability(target)
        self.warp_size = target.warp_size
        if target.backend == "hip":
            self.gcnArchName = str(target.arch)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} of a GPU was asked for, and recipes are compiled without one")


def answer_by(target: Target) -> None:
    """Have torch answer by a target, now or as soon as this process imports it."""
    if _MODULE in sys.modules:
        _put_answers(sys.modules[_MODULE], target)
        return
    others = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    sys.meta_path[:] = others
    sys.meta_path.insert(0, _Finder(target))


class _Finder:
    """Finds torch's module of CUDA as `sys.path` has it, and puts the answers into it once it is executed."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of that one module; None for all others, which other finders find."""
        if name != _MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            _put_answers(module, self._target)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def _put_answers(cuda: ModuleType, target: Target) -> None:
    answers = {
        "current_device": 0,
        "get_device_capability": _capability(target),
        "get_device_name": _name(target),
        "get_device_properties": _Properties(target),
    }
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))


def _always(answer: object) -> Any:
    def answered(*_: object, **__: object) -> object:
        return answer

    return answered


def _name(target: Target) -> str:
    maker = "NVIDIA" if target.backend == "cuda" else "AMD"
    return f"{maker} GPU ({target})"


def _capability(target: Target) -> tuple[int, int]:
    """The compute capability, as torch tells it: (9, 0) for sm_90, (9, 4) for gfx942."""
    if type(target.arch) is int:
        return divmod(target.arch, 10)
    match = re.fullmatch(r"gfx([0-9]+)([0-9a-f])[0-9a-f]", target.arch.partition(":")[0])  # type: ignore[union-attr]
    if match is None:
        return 0, 0
    return int(match[1]), int(match[2], 16)
