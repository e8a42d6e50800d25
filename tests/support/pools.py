"""Pools whose kernels are functions of a test's own modules (`support.stand_in_replay`), and recipes of such."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gpucache.kernels.recipe import Function, Recipe, Target
from gpucache.warm.pool import scheduler_process

_INSTEAD = (
    "    from gpucache.warm.pool import importer; importer.REPLAY = 'support.stand_in_replay'\n"
)


def processes_with(variable: str) -> dict[int, str]:
    """The names of the processes that were started with a variable in their environment, by their numbers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "comm").read_text().strip()
        except OSError:
            continue  # it has ended
    return found


def is_gone(variable: str) -> bool:
    """Whether all processes that have a variable end in the time that the pool promises."""
    return comes_true(lambda: not processes_with(variable))


def comes_true(asked: Callable[[], bool], limit_s: float = 2.0) -> bool:
    """Whether something is so within the limit, which is longer on a busy machine."""
    deadline = time.monotonic() + limit_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    while not asked():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Modules:
    """A directory of modules, which pools import."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    def write(self, name: str, text: str) -> None:
        path = self.directory.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))

    def recipe(self, module: str, name: str, /, **fields: Any) -> Recipe:
        self._count += 1
        file = self.directory.joinpath(*module.split(".")).with_suffix(".py")
        made = Recipe(
            key=f"KEY{self._count:013d}",
            triton_version="3.9.0",
            kernel=name,
            function=Function(module, name, str(file), "00"),
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
