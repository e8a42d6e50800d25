"""Processes that compile real kernels, many at once."""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.warm import WarmPython

PYTHON = os.environ.get("GPUCACHE_TEST_TRITON", sys.executable)
"""The Python whose Triton compiles."""
KERNELS = Path(__file__).with_name("kernels.py")
WORKER = Path(__file__).with_name("prune_worker.py")
ONE_KERNEL = Path(__file__).with_name("compile_kernel.py")
COMPILE = "import kernels; kernels.main()"
PLUGIN = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}


marked = False
"""Whether the running test has the marker `compiles`."""


def warm(python: str = PYTHON, warnings: str = "") -> WarmPython:
    """The one warm Python of this interpreter and filter of warnings, until this process ends.

    For tests with the marker `compiles`.
    """
    assert marked, "a test that compiles asks for the fixture `triton`, which marks it"
    return _warm(python, warnings)


@functools.cache
def _warm(python: str, warnings: str) -> WarmPython:
    env = {**os.environ, "PYTHONWARNINGS": warnings}
    made = WarmPython([python], "import kernels; kernels.hash_triton()", env)
    atexit.register(made.close)
    return made


def python_with_triton(
    code: str,
    *words: object,
    env: Mapping[str, str] | None = None,
    text: str = "",
    python: str = PYTHON,
) -> str:
    """What code prints that a process of a warm Python runs, and ends well."""
    done = warm(python).run(code, *words, env=dict(os.environ if env is None else env), text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compile_kernels(env: Mapping[str, str], *words: object, python: str = PYTHON) -> dict[str, Any]:
    """What ``kernels.py`` says of the words, its count and architectures, in an environment and more of it."""
    out = python_with_triton(COMPILE, *words, env={**os.environ, **env}, text="\n", python=python)
    return json.loads(out.splitlines()[-1])


class Rank:
    """A process that compiles kernels once it is told to."""

    def __init__(
        self,
        env: Mapping[str, str],
        count: int = 1,
        arch: Sequence[int] = (90,),
        start: bool = True,
    ) -> None:
        self.process = warm(warnings=env.get("PYTHONWARNINGS", "")).start(
            COMPILE, count, *arch, env=env
        )
        if start:
            self.expect("ready")

    def expect(self, line: str) -> None:
        said = self.process.stdout.readline()
        assert said == line + "\n", (said, self.process.stderr.read() if not said else "")

    def go(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self, timeout: float = 120) -> dict[str, Any]:
        out, self.err = self.process.communicate("\n", timeout=timeout)
        assert self.process.returncode == 0, self.err
        return json.loads(out.splitlines()[-1])


def together(ranks: Sequence[Rank]) -> list[dict[str, Any]]:
    """Let all of them go at once."""
    for rank in ranks:
        rank.go()
    return [rank.said() for rank in ranks]
