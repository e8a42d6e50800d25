"""Kernels that were carried to another machine are compiled there for another architecture, by their recipes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from support.corpus_runs import copy_program, launch_corpus, warm_corpus

from gpucache.store.manifest import RECIPE

pytestmark = pytest.mark.compiles

LAUNCHES = (
    "a constant of an enumeration in a class",
    "a constant named tuple",
    "a function as constant",
    "a function of Triton as constant",
    "a constant tuple of functions",
    "a kernel in a class",
    "a kernel in a file that no path leads to",
    "a kernel of a package in the package",
    "a kernel of the script",
    "a kernel that another module passes on",
    "a kernel that only a dictionary holds",
    "layer norm, helpers of another module, one not inlined",
    "vector add",
)
"""Kernels whose recipes name files: of modules in packages, of the script, of functions among their constants."""


class Carried(NamedTuple):
    """A root in which a pack of another machine was unpacked, and the machine's own copy of the program."""

    root: Path
    program: Path
    former: Path
    """Where the program was on the other machine; it is gone."""


def gpucache(*words: object) -> str:
    command = [sys.executable, "-m", "gpucache", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Carried:
    place = tmp_path_factory.mktemp("carried")
    former, program = copy_program(place / "first"), copy_program(place / "second")
    said = launch_corpus(place / "former-root", "sm_90", *LAUNCHES, support=former)
    assert set(said.keys.values()) == set(LAUNCHES)
    gpucache("pack", "-o", place / "pack.tar.zst", "--root", place / "former-root")
    shutil.rmtree(former)
    shutil.rmtree(place / "former-root")
    gpucache("unpack", place / "pack.tar.zst", "--root", place / "root", "--unsigned")
    return Carried(place / "root", program, former)


def test_no_recipe_names_a_directory_of_the_other_machine(carried):
    recipes = list(carried.root.glob(f"gpucache/v1/store/*/*/{RECIPE}"))
    assert len(recipes) >= len(LAUNCHES)
    text = b"".join(path.read_bytes() for path in recipes)
    assert str(carried.former.parent).encode() not in text
    files = {json.loads(path.read_bytes())["function"][2] for path in recipes}
    assert {"corpus/vector_add.py", "corpus/deep/inner.py", "run_corpus.py", "file.py"} <= files
    assert not any(file.startswith("/") for file in files)


def test_all_are_compiled_for_another_architecture_and_then_hit(carried, tmp_path):
    """The program lies elsewhere than where it was recorded."""
    root = shutil.copytree(carried.root, tmp_path / "root")
    # the directory from which the program loads a file by its path
    apart = carried.program / "corpus/apart"
    outcomes = warm_corpus(root, "--store", "--arch", "sm_80", support=carried.program, path=apart)
    assert Counter(one["end"] for one in outcomes) == {"made": len(outcomes)}
    said = launch_corpus(root, "sm_80", *LAUNCHES, support=carried.program)
    assert set(said.keys.values()) == set(LAUNCHES)
    assert said.compiled == {}


def test_they_are_carried_on_with_equal_recipes(carried, tmp_path):
    """A pack of what was unpacked says the same."""
    packed = []
    for number, root in enumerate((carried.root, tmp_path / "third")):
        file = tmp_path / f"{number}.tar.zst"
        gpucache("pack", "-o", file, "--root", root, "--name", "same", "--number", "1")
        packed.append(file.read_bytes())
        gpucache("unpack", file, "--root", tmp_path / "third", "--unsigned")
    assert packed[0] == packed[1]
