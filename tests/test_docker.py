"""`docs/docker.md` and its Dockerfile: what the build compiles, a container of another root does not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.recorded import COUNT, Recorded, compiled, recorded
from support.snippets import DOCS, snippets

PAGE = DOCS / "docker.md"
RECORD, DOCKERFILE = (snippet.text for snippet in snippets(PAGE))

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("triton")]


def said(line: str, program: Recorded, **environ: str) -> str:
    """What a line of the page says in the directory of the image."""
    done = program.say(line, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_is_the_one_of_the_page() -> None:
    assert (DOCS / "examples/Dockerfile").read_text(encoding="utf-8") == DOCKERFILE


def test_what_the_image_compiled_its_container_does_not(tmp_path: Path) -> None:
    program = recorded(tmp_path / "image", tmp_path / "apart")
    program.shared.chmod(0o755)
    (program.shared / "serve.py").write_text((tmp_path / "apart/sources/train.py").read_text())
    joined = DOCKERFILE.replace("\\\n", " ").replace("/tmp/", f"{tmp_path}/")
    joined = joined.replace("/opt/", f"{program.shared}/")
    steps = dict(re.findall(r"^(RUN|ENV|CMD) (.*)$", joined, re.MULTILINE))
    assert compiled(said(RECORD, program, GPUCACHE_DIR=f"{tmp_path}/gpu")) == COUNT
    said(steps["RUN"], program)
    environ = dict(word.split("=", 1) for word in shlex.split(steps["ENV"]))
    words = shlex.split(steps["CMD"].strip("[]").replace(",", " "))
    assert compiled(said(shlex.join(words), program, **environ)) == 0
