"""Real JIT compilers as clients of a root: what starts each, and how it is known what was compiled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from support.processes import PATIENCE_S

PROGRAMS = Path(__file__).parent / "jit_programs"
COMPILERS = ("c++", "g++", "cc", "gcc", "nvcc")


class Client(NamedTuple):
    """A program that has one software compile."""

    cache: str
    """The name of the software's row in `gpucache.layout.jit_caches`."""
    counted: bool = False
    """Whether the compiles are those of compilers, which are counted; else the program itself says how many."""
    argument: str | None = None
    """The program's argument, with ``{jit}`` and ``{work}``."""

    @property
    def program(self) -> Path:
        return PROGRAMS / f"use_{self.cache.replace('-', '_')}.py"


class Ran(NamedTuple):
    """What a run of a client did."""

    compiled: int
    stderr: str


class Desk(NamedTuple):
    """A root, a home and a directory of compilers that write down each call."""

    root: Path
    home: Path
    work: Path
    calls: Path
    environ: dict[str, str]

    def run(self, client: Client, *names: str) -> Ran:
        """Run a client under ``gpucache run --caches``, by default with its own name."""
        words = ["run", "--caches", ",".join(names or (client.cache,)), "--", sys.executable]
        words.append(str(client.program))
        if client.argument is not None:
            argument = client.argument.format(jit=self.root / "jit", work=self.work)
            words.append(argument)
        self.calls.write_text("")
        done = self.gpucache(*words)
        assert done.returncode == 0, done.stderr
        said = json.loads([line for line in done.stdout.splitlines() if line[:1] == "{"][-1])
        compiles = [line for line in self.calls.read_text().splitlines() if " -c " in line]
        links = [line for line in self.calls.read_text().splitlines() if " -o " in line]
        counted = len(compiles) or len(links)
        return Ran(counted + said.get("compiled", 0), done.stderr)

    def elsewhere(self) -> Desk:
        """The same desk with another root, which is there."""
        root = self.root.with_name("moved")
        moved = self._replace(root=root, environ={**self.environ, "GPUCACHE_DIR": str(root)})
        assert moved.gpucache("provision").returncode == 0
        return moved

    def gpucache(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gpucache", *words]
        return subprocess.run(
            command,
            env=self.environ,
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file below ``jit``, by its path there."""
        found = {}
        for path in (self.root / "jit").rglob("*"):
            if path.is_file():
                stated = path.stat()
                found[str(path.relative_to(self.root / "jit"))] = (
                    stated.st_size,
                    stated.st_mtime_ns,
                )
        return found


def desk(where: Path) -> Desk:
    """A new desk; the devices are those of a node with one H100."""
    bin_directory = where / "bin"
    for directory in (bin_directory, where / "home", where / "work"):
        directory.mkdir()
    calls = where / "calls"
    for name in COMPILERS:
        real = shutil.which(name)
        if real is not None:
            wrapper = bin_directory / name
            wrapper.write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\nexec {real} "$@"\n')
            wrapper.chmod(0o755)
    environ = {
        "PATH": f"{bin_directory}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(where / "home"),
        "GPUCACHE_DIR": str(where / "root"),
        "GPUCACHE_FAKE_DEVICES": "1xH100:9.0",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        if name in os.environ:
            environ[name] = os.environ[name]
    return Desk(where / "root", where / "home", where / "work", calls, environ)
