"""Single modules of serving engines, loaded from wheels in which nothing is installed."""

from __future__ import annotations

import importlib
import sys
import types
import zipfile
from pathlib import Path

PLACE = Path(sys.prefix) / "wheels"
"""Where `nox -s jit` has downloaded them."""


def wheel(package: str) -> Path | None:
    """The wheel that has a package; None where it was not downloaded."""
    found = sorted(PLACE.glob(f"{package}[-_]*.whl"))
    return found[0] if found else None


def source(package: str, name: str) -> str:
    """The text of a file of a package."""
    path = wheel(package)
    assert path is not None, f"no wheel of {package} in {PLACE}"
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode()


def load(package: str, module: str, directory: str) -> types.ModuleType:
    """Import one module of a package, whose own ``__init__`` and those on the way to it are not executed."""
    path = wheel(package)
    assert path is not None, f"no wheel of {package} in {PLACE}"
    parts = [package, *module.split(".")[:-1]]
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and _is_beside(name, parts):
                archive.extract(name, directory)
    for depth in range(1, len(parts) + 1):
        made = types.ModuleType(".".join(parts[:depth]))
        made.__path__ = [str(Path(directory, *parts[:depth]))]
        sys.modules[made.__name__] = made
    return importlib.import_module(f"{package}.{module}")


def _is_beside(name: str, parts: list[str]) -> bool:
    """Whether a file lies in one of the packages on the way."""
    above = name.split("/")[:-1]
    return above == parts[: len(above)]
