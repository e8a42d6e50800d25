"""`README.md` leads to all pages, says what is there, and shows what commands print."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

import pytest
from support.cli import README, TEXT
from support.processes import PATIENCE_S
from support.ranks import PYTHON
from support.snippets import ALL_TEXT, DOCS, snippets
from support.stand_in_commands import stand_in_commands
from support.terminals import at_width

from gpucache import __all__ as public
from gpucache.cli.commands import cli

INSTALLS = [
    block.strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if "pip" in block
]


def test_the_install_commands_are_the_ones_that_ci_runs():
    assert [" ".join(block.split()) for block in INSTALLS] == [
        "pip install '.[demo]' && gpucache demo",
        "pip install . && gpucache provision",
        "pip install -e '.[test]' && pytest",
    ]
    ci = (README.parent / ".ci" / "run").read_text()
    for block in INSTALLS:
        for command in block.split(" && "):
            assert command in ci


def test_completion_can_be_turned_on(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(eval \"\$\(gpucache completion.*?)`", page)
    path = f"{stand_in_commands(tmp_path)}:/usr/bin:/bin"
    words = ["bash", "-c", f"{line}; complete -p gpucache"]
    assert subprocess.run(words, env={"PATH": path}, capture_output=True).returncode == 0


def test_every_public_name_but_values_and_errors_is_in_a_page():
    from gpucache import errors

    values = {
        "Device",
        "Snapshot",
        "Status",
        "Unavailable",
        "Visible",
        "Provision",
        "Setting",
        "LaunchReport",
    }
    unsaid = set(public) - values - set(vars(errors)) - {"__version__"}
    text = ALL_TEXT
    assert [
        name for name in sorted(unsaid) if f"`{name}" not in text and f"`.{name}" not in text
    ] == []


def test_every_command_is_in_a_page():
    assert [name for name in cli.list_commands(None) if f"gpucache {name}" not in ALL_TEXT] == []


def test_every_command_prints_json_but_those_that_are_said_not_to():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"`--json` on every command but (.*?),\s+which", page, re.DOTALL)
    without = set()
    for name in cli.list_commands(None):
        command = cli.get_command(None, name)
        of_group = getattr(command, "commands", {name: command})
        for one in of_group.values():
            if not any("--json" in option.opts for option in one.params):
                without.add(name)
    assert without == set(re.findall(r"`(\w+)`", sentence))


def test_every_option_is_in_a_page():
    """By hand, for what it is good; the page of all commands has each besides, as `--help` says it."""
    commands = [cli.get_command(None, name) for name in cli.list_commands(None)]
    options = [parameter for command in commands for parameter in command.params]
    names = {
        name
        for option in options
        for name in option.opts + option.secondary_opts
        if name.startswith("--")
    }
    assert names >= {"--root", "--require-gpu", "--no-plugin"}
    assert sorted(name for name in names if name not in ALL_TEXT) == []


TRAIN = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from gpucache.demo.kernels import KERNELS
from gpucache.demo.rank import _source
for stages in sys.argv[1:]:
    for function, types, constants in KERNELS:
        if function.__name__ in ("matmul", "dropout"):
            source = _source(function, types.split(), constants)
            options = {"num_stages": int(stages)}
            triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
"""
"""What makes the root that the README looks at, of fewer kernels."""
SHOWN = dict(
    part.split("\n", 1)
    for snippet in snippets(README)
    if snippet.language == "console"
    for part in re.split(r"^\$ gpucache ", snippet.text, flags=re.MULTILINE)[1:]
)
"""What the README shows of each command, by its words."""


def heads(text: str) -> list[str]:
    """The names of the columns in a table: the first line with two of them."""
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    return next(line for line in lines if len(line) > 1)


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a root with kernels, which a rank has compiled and another taken."""
    place = tmp_path_factory.mktemp("readme")
    (place / "train.py").write_text(TRAIN)
    environ = {"GPUCACHE_DIR": str(place / "kernels"), "GPUCACHE_FAKE_DEVICES": "4xH100:9.0"}
    environ["PATH"] = f"{stand_in_commands(place)}:{os.environ['PATH']}"
    for device, stages in ((0, "3"), (1, "3"), (0, "4")):
        words = f"run --device {device} -- {PYTHON} train.py {stages}"
        done = subprocess.run(
            ["gpucache", *words.split()],
            env={**os.environ, **environ},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
    return environ


@pytest.mark.parametrize("words", [words for words in SHOWN if words != "demo"])
def test_what_the_readme_shows_of_a_command_has_its_columns(words, looked_at, triton):
    """In their order, as far as they fit."""
    shown, seen = heads(SHOWN[words]), heads(at_width(shlex.split(words), 200, looked_at))
    assert len(shown) > 2
    assert [name for name in seen if name in shown] == shown


def test_what_the_readme_shows_of_the_demo_is_what_it_prints(triton):
    """But for the numbers."""
    seen = at_width(("demo", "--ranks", "2", "--kernels", "2"), 80).splitlines()
    without = [re.sub(r"-?[\d.]+|[KM]iB|\bcores?\b", "N", " ".join(line.split())) for line in seen]
    for line in SHOWN["demo"].splitlines():
        said = re.sub(r"-?[\d.]+|[KM]iB|\bcores?\b", "N", " ".join(line.split()))
        assert said in without


def test_the_readme_is_read_in_one_sitting():
    assert len(TEXT.splitlines()) <= 130
