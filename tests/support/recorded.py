"""A program with real kernels, the recipes that it has left, and the commands by which other machines compile them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from support.processes import PATIENCE_S, until
from support.ranks import KERNELS

PAGE = (Path(__file__).parents[2] / "docs/warm-on-slurm-and-ray.md").read_text(encoding="utf-8")
"""What the documentation says about several machines."""
HANGING = """
import os, time
open(os.environ["IMPORTING"], "w").close()
time.sleep(600)
"""
"""A module whose import says so by making a file, and takes longer than a test."""
_MARK = "GPUCACHE_TEST_MARK"
COUNT = 8
"""How many kernels the program asks for."""


def code_of_the_page(language: str) -> str:
    """The one block of code in a language on the page."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(block)


class Recorded(NamedTuple):
    """A directory that all machines see, with what a run of the program on another machine has left in it."""

    shared: Path
    """What the page calls ``/shared``: it has ``kernels.jsonl``, and ``gpucache``, an empty root of a cache."""
    apart: Path
    environ: dict[str, str]
    """The environment of a shell in which the page's lines are said, ``train.sh`` starts the program, and ``gpucache``
    and ``python`` are this Python's."""

    def here(self, text: str) -> str:
        """A text of the page with this directory in the place of ``/shared``."""
        return text.replace("/shared", str(self.shared))

    def say(self, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Say a line of a page in a shell, in the shared directory, with these variables besides."""
        return subprocess.run(
            ["bash", "-c", line],
            env=self.environ | environ,
            cwd=self.shared,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
        )

    def compiles(self) -> int:
        """How many kernels the program compiles that is run now, with the shared root."""
        out = _gpucache(self.environ, "run", "--root", self.shared / "gpucache", "--", "train.sh")
        return compiled(out)

    def keys(self) -> list[str]:
        """The key of each recipe, sorted."""
        lines = (self.shared / "kernels.jsonl").read_text().splitlines()
        recipes = [json.loads(line) for line in lines]
        return sorted(recipe["key"] for recipe in recipes if "key" in recipe)

    def hang_at_import(self) -> None:
        """From now on, whoever imports the kernels makes the file `importing`, and hangs."""
        (self.apart / "sources/kernels.py").write_text(HANGING)

    @property
    def importing(self) -> Path:
        return Path(self.environ["IMPORTING"])

    def until_it_is_imported(self) -> None:
        """Wait until a process has begun to import the kernels, after `hang_at_import`."""
        until(self.importing.exists, "nobody imports the kernels")

    def until_no_process_is_left(self) -> None:
        """Wait until no process of a `gpucache warm`, or of a pool, is there that was started in this environment."""
        until(lambda: not self.warming(), "a process is left")

    def warming(self) -> list[str]:
        """The commands of the processes of any `gpucache warm`, or of a pool, that have this environment's mark."""
        mark = f"{_MARK}={self.environ[_MARK]}\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if (
                    re.search(r"gpucache[. ]warm", command)
                    and mark in (process / "environ").read_bytes()
                ):
                    found.append(command)
        return found

    def stored(self) -> list[str]:
        """The keys in the store of the shared root, sorted."""
        return sorted(path.name for path in self.shared.glob("gpucache/gpucache/v1/store/*/*"))


def recorded(shared: Path, apart: Path) -> Recorded:
    """Run the program once, with a root in the directory ``apart``, and keep its recipes in ``shared``."""
    for directory in (shared, apart / "bin", apart / "sources"):
        directory.mkdir(parents=True, exist_ok=True)
    _write_program(apart / "sources")
    _write_commands(apart / "bin", apart / "sources/train.py")
    environ = {
        **os.environ,
        "PATH": f"{apart}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(apart / "sources"), *filter(None, sys.path)]),
        "GPUCACHE_FAKE_DEVICES": "1xH100:9.0",
        "IMPORTING": str(apart / "importing"),
        _MARK: secrets.token_hex(8),
    }
    recording = environ | {"GPUCACHE_RECORD": str(shared / "kernels.jsonl")}
    _gpucache(recording, "run", "--root", apart / "root", "--", "train.sh")
    _gpucache(environ, "provision", "--root", shared / "gpucache")
    return Recorded(shared, apart, environ)


def _write_program(directory: Path) -> None:
    shutil.copy(KERNELS, directory)
    (directory / "train.py").write_text(
        f"import sys, kernels\nsys.argv[1:] = ['{COUNT}', '90']\nkernels.main()\n"
    )


def _write_commands(directory: Path, program: Path) -> None:
    (directory / "python").symlink_to(sys.executable)
    for name, line in (
        ("gpucache", f'exec {sys.executable} -m gpucache "$@"'),
        ("train.sh", f"exec gpucache run -- python {program}"),
    ):
        (directory / name).write_text(f"#!/bin/sh\n{line}\n")
        (directory / name).chmod(0o755)


def _gpucache(environ: Mapping[str, str], *words: object) -> str:
    command = [sys.executable, "-m", "gpucache", *(str(word) for word in words)]
    done = subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiled(said: str) -> int:
    """How many kernels the program has compiled, by what it said."""
    return int(json.loads(said.splitlines()[-1])["compiled"])
