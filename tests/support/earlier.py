"""Earlier gpucaches, as the history of this repository has them, and processes that run one of them or this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support.processes import PATIENCE_S, unmeasured
from support.ranks import KERNELS, PLUGIN, PYTHON

HERE = Path(__file__).parents[2]
EARLIER = {
    "before folders, recipes and keys in manifests": "852af7e",
    "before evictions were counted": "6e28c00",
}
"""The last two states with other files on disk than this one, by commit; once there are releases, their tags."""


class Version(NamedTuple):
    """One gpucache, by the directory that has its package, on one root."""

    tree: Path
    root: Path

    @property
    def environ(self) -> dict[str, str]:
        # Coverage would count an earlier package as well, once for each directory it was extracted to.
        own = os.environ if self.tree == HERE else unmeasured()
        return {
            **own,
            **PLUGIN,
            "PYTHONPATH": str(self.tree),
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_FAKE_DEVICES": "4xH100:9.0",
            "TRITON_DEFAULT_FP_FUSION": "1",
        }

    def says(self, *words: object) -> str:
        """What a command prints that ends well."""
        done = subprocess.run(
            [sys.executable, "-m", "gpucache", *map(str, words)],
            env=self.environ,
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def rank(self, device: int, count: int) -> subprocess.Popen[str]:
        """A process that compiles so many kernels in the directory of a device, once it is told to."""
        environ = {**self.environ, "TRITON_CACHE_DIR": f"{self.root}/triton/{device}"}
        return subprocess.Popen(
            [PYTHON, str(KERNELS), str(count)],
            env=environ,
            cwd=self.root.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def extracted(commit: str, into: Path) -> Path:
    """The directory with the package of a commit.

    Raises:
        LookupError: the history is not here, as in a shallow clone or a source distribution.
    """
    into.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(HERE), "archive", commit, "gpucache"], capture_output=True
    )
    if archive.returncode != 0:
        raise LookupError(f"{commit}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(into)], input=archive.stdout, check=True)
    return into


def together(ranks: list[subprocess.Popen[str]]) -> list[Mapping[str, Any]]:
    """What each rank says, all of which begin at once."""
    for rank in ranks:
        assert rank.stdout is not None
        said = rank.stdout.readline()
        assert said == "ready\n", (said, rank.stderr and rank.stderr.read())
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    found = []
    for rank in ranks:
        out, err = rank.communicate(timeout=4 * PATIENCE_S)
        assert (rank.returncode, "Traceback" in err) == (0, False), err
        found.append(json.loads(out.splitlines()[-1]))
    return found
