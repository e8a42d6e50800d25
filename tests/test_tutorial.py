"""The tutorial (docs/tutorial.md), command after command, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.processes import PATIENCE_S
from support.snippets import HERE, snippets
from support.stand_in_commands import stand_in_commands

PAGE = HERE / "docs/tutorial.md"


@pytest.mark.compiles
def test_the_second_device_takes_what_the_first_has_compiled(tmp_path: Path) -> None:
    """All commands but the demo, which has tests of its own, in a shell that stops at an error."""
    found = snippets(PAGE)
    (program,) = (snippet.text for snippet in found if snippet.language == "python")
    (tmp_path / "add.py").write_text(program)
    lines = [line for snippet in found if snippet.language == "sh" for line in snippet.lines]
    assert lines[0] == "gpucache demo"
    script = "\n".join(["set -e", *lines[1:], "gpucache stats --json > said"])
    path = f"{stand_in_commands(tmp_path)}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said").read_text())["all"]
    assert (said["misses"], said["shared_hits"]) == (1, 1)
