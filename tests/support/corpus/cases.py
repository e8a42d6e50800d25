"""The register of launches: `case` names one, `every` gives those that a Triton and a target have."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import triton

VERSION = tuple(int(number) for number in triton.__version__.split(".")[:2])
"""Of the running Triton."""


class Case(NamedTuple):
    """A launch, by its name."""

    name: str
    launch: Callable[[], object]
    backends: tuple[str, ...]


_CASES: dict[str, Case] = {}


def case(
    name: str,
    since: tuple[int, int] = (3, 2),
    until: tuple[int, int] = (9, 9),
    backends: tuple[str, ...] = ("cuda", "hip"),
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """A decorator of a function that launches what Triton compiles from one version to another, for these backends."""

    def register(launch: Callable[[], object]) -> Callable[[], object]:
        if since <= VERSION <= until:
            assert name not in _CASES
            _CASES[name] = Case(name, launch, backends)
        return launch

    return register


def every(backend: str) -> list[Case]:
    """All launches that the running Triton has for a backend; imports every module of the package."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        importlib.import_module(module.name)
    return [case for case in _CASES.values() if backend in case.backends]
