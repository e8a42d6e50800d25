"""Every fenced block of every page is run, or says why it can't be."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import PATIENCE_S
from support.recipes import recipe_file
from support.snippets import HERE, PAGES, Snippet, all_snippets, snippets
from support.stand_in_commands import stand_in_commands

SNIPPETS = all_snippets()
OF_SHELLS = [
    snippet
    for snippet in SNIPPETS
    if snippet.language == "sh" and not snippet.run_by and not snippet.not_run
]
LINES = list(dict.fromkeys(line for snippet in OF_SHELLS for line in snippet.lines))
"""Each once, however many pages have it."""
OF_TORCH = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
INSTALLS = "pip install"
"""Lines that begin so are those of `.ci/run` (`test_readme`)."""
PROGRAMS = ("train.py", "tune.py", "serve.py")
SAY = "import os; os.write(1, str(os.environ.get('TRITON_CACHE_DIR')).encode() + b'\\n')\n"
"""One write: the ranks share the pipe."""

Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


def first_word(line: str) -> str:
    return line.split()[0]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A directory with programs, eight fake devices, and stand-ins for ``sudo`` and the launchers of a cluster."""
    for name in PROGRAMS:
        (tmp_path / name).write_text(SAY)
    for mounted in ("scratch", "shared"):
        (tmp_path / mounted).mkdir()
    recipe_file(tmp_path / "recipes.jsonl")
    environ = {
        **os.environ,
        "PATH": f"{stand_in_commands(tmp_path)}:{os.environ['PATH']}",
        "GPUCACHE_DIR": str(tmp_path / "root"),
        "GPUCACHE_FAKE_DEVICES": "8xH100:9.0",
    }

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line.replace("/scratch", str(tmp_path / "scratch"))],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
        )

    run("gpucache provision")
    return run


def is_said(line: str) -> bool:
    return first_word(line) not in OF_TORCH and not line.startswith(INSTALLS)


@pytest.mark.parametrize("line", [line for line in LINES if is_said(line)])
def test_every_line_for_a_shell_works(line: str, shell: Shell, tmp_path: Path) -> None:
    # Nobody is there to be asked.
    done = shell(f"{line} --yes" if line == "gpucache clean" else line)
    assert done.returncode == 0, done.stderr
    if line.startswith(("srun", "mpirun")) and " train.py" in line:
        assert sorted(done.stdout.split()) == [f"{tmp_path}/root/triton/{n}" for n in range(4)]
    elif "--device 2" in line:
        assert done.stdout == f"{tmp_path}/root/triton/2\n"


@pytest.mark.torch
@pytest.mark.parametrize("line", [line for line in LINES if first_word(line) in OF_TORCH])
def test_every_line_for_a_launcher_of_torch_works(line: str, shell: Shell, tmp_path: Path) -> None:
    word = first_word(line)
    pytest.importorskip(word.replace("torchrun", "torch"))
    more = " --num_processes 4" if word == "accelerate" and "--num_processes" not in line else ""
    done = shell(
        line.replace(word, f"{sys.executable} -m {OF_TORCH[word]}", 1).replace(
            "--multi_gpu", f"--multi_gpu{more}"
        )
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"{tmp_path}/root/triton/{n}" for n in range(4)]


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.exists() and any(s.language == "pycon" for s in snippets(page))
    ],
    ids=lambda page: page.name,
)
def test_every_python_example_is_true(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_every_block_is_run_or_says_why_not(snippet: Snippet) -> None:
    """By the tests above, by a file of tests that reads the page, or not at all for a reason of several words."""
    if snippet.not_run is not None:
        assert len(snippet.not_run) >= len("a drawing")
    elif snippet.run_by is not None:
        tests = (HERE / snippet.run_by).read_text(encoding="utf-8")
        assert str(snippet.page.relative_to(HERE)) in tests, f"{snippet.run_by} reads another page"
    else:
        assert snippet.language in ("sh", "pycon"), (
            f"say above {snippet} `<!-- run by tests/test_….py -->`, or `<!-- not run: why -->`"
        )


def test_a_block_without_a_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run by tests/test_a.py -->\n```sh\na\n```\n\n- one\n\n  <!-- not run: why -->\n"
        "  ```yaml\n  b: 1\n  ```\n\n```python\nc\n```\n"
    )
    found = [(one.line, one.language, one.text, one.run_by, one.not_run) for one in snippets(page)]
    assert found == [
        (2, "sh", "a\n", "tests/test_a.py", None),
        (9, "yaml", "b: 1\n", None, "why"),
        (13, "python", "c\n", None, None),
    ]
    page.write_text(f"<!-- all run by tests/test_b.py -->\n{page.read_text()}")
    assert [one.run_by for one in snippets(page)] == ["tests/test_a.py", None, "tests/test_b.py"]
