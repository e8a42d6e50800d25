"""Pools whose kernels are functions of a test's own modules (`support.stand_in_replay`), and recipes of such."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gpucache.kernels.recipe import Function, Recipe, Target
from gpucache.warm import scheduler_process

_INSTEAD = "    from gpucache.warm import importer; importer.REPLAY = 'support.stand_in_replay'\n"


class Modules:
    """A directory of modules, which pools import."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    def write(self, name: str, text: str) -> None:
        path = self.directory.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))

    def recipe(self, module: str, function: str, **fields: Any) -> Recipe:
        self._count += 1
        file = self.directory.joinpath(*module.split(".")).with_suffix(".py")
        made = Recipe(
            key=f"KEY{self._count:013d}",
            triton_version="3.9.0",
            kernel=function,
            function=Function(module, function, str(file), "00"),
            target=Target("cuda", 90, 32),
            signature={},
            constants=(),
            specialized=(),
            options={},
            variables={},
        )
        return made._replace(**fields)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Modules that can be imported by pools of this test, which call functions instead of compiling."""
    made = Modules(tmp_path / "modules")
    made.directory.mkdir()
    monkeypatch.setattr(sys, "path", [str(made.directory), *sys.path])
    serve = "    serve({"
    start = scheduler_process.START.replace(serve, _INSTEAD + serve)
    monkeypatch.setattr(scheduler_process, "START", start)
    return made
