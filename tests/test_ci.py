"""`docs/ci.md`: its job, step by step, and what a machine that reads compiles then."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.read_through import end_couriers
from support.recorded import compiled, recorded
from support.snippets import DOCS, snippets

PAGE = DOCS / "ci.md"
"""As in the repository: docs/ci.md."""
JOB, REQUIRE = (snippet.text for snippet in snippets(PAGE))

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("triton")]


def test_what_the_job_has_compiled_a_reader_does_not(tmp_path: Path) -> None:
    program = recorded(tmp_path / "clone", tmp_path / "apart")
    (program.shared / "kernels.jsonl").rename(program.shared / "recipes.jsonl")
    (program.shared / "train.py").write_text((tmp_path / "apart/sources/train.py").read_text())
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    job = yaml.safe_load(JOB)["jobs"]["kernels"]
    environ = {**job["env"], "GPUCACHE_REMOTE": f"file://{bucket}?mode=write"}
    environ["GPUCACHE_DIR"] = str(tmp_path / "kernels")
    made = program.say("gpucache keygen ci")
    secret = (program.shared / "ci.key").read_text().strip()
    (program.shared / "ci.key").unlink()
    for step in job["steps"]:
        if "run" in step:
            done = program.say(step["run"], **environ, CI_KEY=secret)
            assert done.returncode == 0, (step, done.stderr)
    reader = {
        "GPUCACHE_DIR": str(tmp_path / "reader"),
        "GPUCACHE_REMOTE": f"file://{bucket}",
        "GPUCACHE_TRUST_KEYS": made.stdout.strip(),
    }
    empty = program.say(REQUIRE, GPUCACHE_DIR=reader["GPUCACHE_DIR"])
    assert "CacheMissError" in empty.stderr
    assert program.say("gpucache pull my-model", **reader).returncode == 0
    done = program.say(REQUIRE, **reader)
    assert done.returncode == 0, done.stderr
    assert compiled(done.stdout) == 0
    end_couriers(tmp_path / "reader")
