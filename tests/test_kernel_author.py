"""The page for kernel authors: each of its commands runs, and prints what the page shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support.snippets import HERE, Snippet, snippets
from support.terminals import at_width
from support.trees import KEY
from support.tuning import Tuned

PAGE = HERE / "docs/kernel-author.md"
BLOCKS = [block for block in snippets(PAGE) if not block.not_run]
TIMINGS = [
    [{"kwargs": {"BLOCK": 128}, "num_warps": 4}, [0.5, 0.4, 0.7]],
    [{"kwargs": {"BLOCK": 256}, "num_warps": 8}, [0.25, 0.2, 0.35]],
    [{"kwargs": {"BLOCK": 1 << 20}, "num_warps": 4}, [float("inf")] * 3],
]


@pytest.fixture
def workstation(tuned: Tuned, tmp_path: Path) -> Path:
    """A copy of what an afternoon left, with an autotuner's result."""
    root = tmp_path / "root"
    shutil.copytree(tuned.root, root)
    directory = root / "triton/0" / KEY
    directory.mkdir()
    result = directory / "scaled.autotune.json"
    result.write_text(json.dumps({"configs_timings": TIMINGS}))
    os.utime(result, (1e9, 1e9))
    return root


def of_shell() -> list[Snippet]:
    """The blocks of commands that look at what is there; the last one runs a program."""
    return [block for block in BLOCKS if block.language == "sh" and "run --fresh" not in block.text]


def shown_after(block: Snippet) -> str | None:
    """The output that the page shows behind a block of commands: that of its first command, if any."""
    later = [one for one in BLOCKS if one.line > block.line]
    return later[0].text if later and later[0].language == "text" else None


def words_of(line: str, tuned: Tuned) -> list[str]:
    """The words of a line behind ``gpucache``; placeholders are keys of this afternoon."""
    keys = {
        "A_KEY_OF_LS": tuned.keys["options"],
        "A_KEY": tuned.keys["constant"],
        "ANOTHER_KEY": tuned.keys["options"],
        "A_TUNING_KEY": KEY,
    }
    command, *words = shlex.split(line.partition(" > ")[0])
    assert command == "gpucache"
    return [keys.get(word, word) for word in words]


def shape(text: str) -> list[list[str]]:
    """What of a table does not change with the time, the compiler and its keys: each line's words, but for figures."""
    lines = []
    for line in text.splitlines():
        words = re.sub(r"\bnow\b|\d+ \w+ ago", "AGO", line).split()
        plain = [re.sub(r"^[A-Z2-7]{12}$|^[\w-]{12}$|^[\d.]+$", "#", word) for word in words]
        lines.append(plain)
    return lines


@pytest.mark.parametrize("block", of_shell(), ids=lambda block: block.lines[0])
def test_every_command_works(block: Snippet, tuned, workstation, here, tmp_path):
    for line in block.lines:
        done = here(*words_of(line, tuned), "--root", workstation)
        assert done.code == 0, done.err
        assert done.out or done.err


@pytest.mark.parametrize(
    "block", [block for block in of_shell() if shown_after(block)], ids=lambda block: block.lines[0]
)
def test_the_page_shows_what_is_printed(block: Snippet, tuned, workstation):
    """By its heads, and its names; with a Triton that does not write down names of constants, by its heads."""
    shown = shape(shown_after(block) or "")
    line = block.lines[-1] if "A_TUNING_KEY" in block.text else block.lines[0]
    seen = shape(at_width([*words_of(line, tuned), "--root", str(workstation)], 100))
    assert shown[0] in seen
    start = seen.index(shown[0])
    printed = seen[start : start + len(shown)]
    assert [len(words) > 0 for words in printed] == [True] * len(shown)
    assert {words[0] for words in printed} == {words[0] for words in shown}


def test_a_fresh_run_leaves_the_root_as_it_was(gpucache, tmp_path):
    assert any("gpucache run --fresh -- python tune.py" in block.text for block in BLOCKS)
    (tmp_path / "tune.py").write_text("import os; print(os.environ['TRITON_CACHE_DIR'])")
    environ = {**os.environ, "GPUCACHE_DIR": str(tmp_path / "root"), "GPUCACHE_FAKE_DEVICES": "1"}
    words = ["run", "--fresh", "--", sys.executable, str(tmp_path / "tune.py")]
    done = gpucache(*words, env=environ)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(tmp_path / "root/triton"))
