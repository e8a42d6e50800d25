"""Recipes of real launches, replayed by the real Triton in another process: the program then compiles nothing.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from support.corpus_runs import SUPPORT, launch_corpus
from support.ranks import PYTHON

pytestmark = pytest.mark.usefixtures("triton")
SCRIPT = SUPPORT / "replay_recipes.py"
FEW = ("a constant float", "a constant tuple, nested", "num_ctas", "options of ptxas")


def recorded(root: Path, *names: str, target: str = "sm_90", python: str = PYTHON) -> Path:
    """The file of the recipes of what a program launches, which caches in ``root``."""
    file = root.with_suffix(".jsonl")
    launch_corpus(root, target, *names, env={"GPUCACHE_RECORD": str(file)}, python=python)
    return file


def replayed(
    root: Path, file: Path, target: str = "", python: str = PYTHON, **settings: object
) -> list[dict[str, object]]:
    """The outcomes of the recipes of a file, replayed in a process of its own."""
    settings.setdefault("path", [str(SUPPORT)])
    settings.setdefault("main", str(SUPPORT / "run_corpus.py"))
    done = subprocess.run(
        [python, str(SCRIPT), str(root), str(file), *([target] if target else [])],
        env={**os.environ, "REPLAY_SETTINGS": json.dumps(settings)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ends(outcomes: list[dict[str, object]]) -> dict[str, int]:
    return dict(Counter(str(one["end"]) for one in outcomes))


def test_the_program_compiles_nothing_after_a_replay(root, tmp_path):
    file = recorded(tmp_path / "first", *FEW)
    outcomes = replayed(root, file)
    assert ends(outcomes) == {"made": len(outcomes)}
    assert all(one["key"] == one["recipe"] for one in outcomes)
    assert launch_corpus(root, "sm_90", *FEW).compiled == {}
