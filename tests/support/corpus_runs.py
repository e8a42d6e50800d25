"""Processes that launch the kernels of the package `corpus`, and processes that compile them by their recipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from support.processes import python_path
from support.ranks import PLUGIN, PYTHON

SUPPORT = Path(__file__).parent
FILES = ("corpus", "run_corpus.py", "stand_in.py")
"""The program, which can be copied elsewhere."""


class Asked(NamedTuple):
    """A kernel that a launch asked for."""

    kernel: str
    key: str
    hit: bool


class Launched(NamedTuple):
    """What one process of the program did, by the names of the launches."""

    triton: str
    asked: Mapping[str, list[Asked]]
    failed: Mapping[str, str]

    @property
    def keys(self) -> dict[str, str]:
        """Which launch asked first for a key."""
        found: dict[str, str] = {}
        for name, kernels in self.asked.items():
            for one in kernels:
                found.setdefault(one.key, name)
        return found

    def launches(self, keys: Iterable[str]) -> set[str]:
        """The launches that asked for any of these keys."""
        asked = set(keys)
        return {
            name for name, kernels in self.asked.items() if any(one.key in asked for one in kernels)
        }

    @property
    def compiled(self) -> dict[str, str]:
        """As `keys`, of what the process compiled itself."""
        missed = {one.key for kernels in self.asked.values() for one in kernels if not one.hit}
        return {key: name for key, name in self.keys.items() if key in missed}


def launch_corpus(
    root: Path,
    target: str,
    *names: str,
    env: Mapping[str, str] | None = None,
    support: Path = SUPPORT,
    python: str = PYTHON,
) -> Launched:
    """Launch all, or those that are named, through the plug-in into a root; ``support`` is where the program lies."""
    environ = {
        **os.environ,
        **PLUGIN,
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
        **(env or {}),
    }
    command = [python, str(support / "run_corpus.py"), target, *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return launched(done.stdout)


def launched(out: str) -> Launched:
    """What a process of the program did, by what it has written on stdout."""
    said = json.loads(out.splitlines()[-1])
    cases = said["cases"].items()
    return Launched(
        triton=said["triton"],
        asked={name: [Asked(**one) for one in case["asked"]] for name, case in cases},
        failed={name: case["failure"] for name, case in cases if case["failure"]},
    )


class Recorded(NamedTuple):
    """A program that found nothing in its root, and was recorded."""

    said: Launched
    root: Path
    recipes: Path


def record_corpus(base: Path, target: str, *names: str, support: Path = SUPPORT) -> Recorded:
    """Launch all, or those that are named, recorded, below a directory where nothing is yet."""
    base.mkdir(exist_ok=True)
    root, recipes = base / "root", base / "recipes.jsonl"
    env = {"GPUCACHE_RECORD": str(recipes)}
    said = launch_corpus(root, target, *names, env=env, support=support)
    return Recorded(said, root, recipes)


def copy_program(support: Path) -> Path:
    """Copy the program to a directory, which is made; that directory."""
    support.mkdir()
    for name in FILES:
        made = [SUPPORT / name, support / name]
        if made[0].is_dir():
            shutil.copytree(*made, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(*made)
    return support


def warm_corpus(
    root: Path,
    recipes: Path | str,
    *words: str,
    support: Path = SUPPORT,
    path: Path | None = None,
    python: str = PYTHON,
) -> list[dict[str, str]]:
    """The outcomes of ``gpucache warm`` of a file of recipes into a root, where the program lies in ``support``.

    ``recipes`` may be ``--store``; ``path`` is one more directory in which modules are looked for.
    """
    root.mkdir(mode=0o700, exist_ok=True)
    main = str(support / "run_corpus.py")
    command = [python, "-m", "gpucache", "warm", str(recipes), "--root", str(root), "--main", main]
    places = [support] if path is None else [support, path]
    environ = {**os.environ, "PYTHONPATH": python_path(*places)}
    done = subprocess.run(
        [*command, "--json", *words], env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode in (0, 1), done.stderr
    outcomes: list[dict[str, str]] = json.loads(done.stdout)["outcomes"]
    return outcomes
