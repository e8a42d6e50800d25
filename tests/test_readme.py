"""Every example of the README does what it says."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys

import pytest
from support.cli import README, TEXT
from support.recipes import recipe_file
from support.stand_in_commands import stand_in_commands

from gpucache import __all__ as public
from gpucache.cli.commands import cli

SHELL = [block.strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)]
INSTALLS = [block for block in SHELL if "pip install" in block]
FLEET = [block for block in SHELL if "gpucache keygen" in block]
"""Its lines are for two machines: `test_fleet`."""
LINES = [
    line.split("  #")[0].strip()
    for block in SHELL
    if block not in INSTALLS + FLEET
    for line in block.splitlines()
]


@pytest.fixture
def shell(tmp_path):
    """A directory with a train.py and a tune.py, eight fake devices, and stand-ins for the cluster's launchers."""
    for name in ("train.py", "tune.py"):
        # One write: the ranks share the pipe.
        (tmp_path / name).write_text(
            "import os; os.write(1, str(os.environ.get('TRITON_CACHE_DIR')).encode() + b'\\n')\n"
        )
    (tmp_path / "scratch").mkdir()  # a disk that is mounted there
    (tmp_path / "shared").mkdir()  # so is this one
    recipe_file(tmp_path / "recipes.jsonl")
    environ = {
        **os.environ,
        "PATH": f"{stand_in_commands(tmp_path)}:{os.environ['PATH']}",
        "GPUCACHE_DIR": str(tmp_path / "root"),
        "GPUCACHE_FAKE_DEVICES": "8",
    }

    def run(line):
        line = line.replace("/scratch", str(tmp_path / "scratch"))
        return subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )

    run("gpucache provision")
    return run


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("torchrun")])
def test_every_command_line_works(line, shell, tmp_path):
    done = shell(line)
    assert done.returncode == 0, done.stderr
    if line.startswith(("srun", "mpirun")):
        assert sorted(done.stdout.split()) == [f"{tmp_path}/root/triton/{n}" for n in range(4)]
    elif "--device 2" in line:
        assert done.stdout == f"{tmp_path}/root/triton/2\n"


@pytest.mark.torch
def test_the_torchrun_line_works(shell, tmp_path):
    (line,) = (line for line in LINES if line.startswith("torchrun"))
    done = shell(line.replace("torchrun", f"{sys.executable} -m torch.distributed.run"))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"{tmp_path}/root/triton/{n}" for n in range(4)]


def test_the_python_examples_are_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(
        str(README),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL,
    )
    assert result.attempted >= 8
    assert result.failed == 0


def test_the_two_install_commands_are_the_ones_that_ci_runs():
    assert [" ".join(block.split()) for block in INSTALLS] == [
        "pip install . && gpucache provision",
        "pip install -e '.[test]' && pytest",
    ]
    ci = (README.parent / ".ci" / "run").read_text()
    for block in INSTALLS:
        for command in block.split(" && "):
            assert command in ci


def test_completion_can_be_turned_on(shell):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    (line,) = re.findall(r"`(eval \"\$\(_GPUCACHE.*?)`", TEXT)
    assert shell(f"{line}; complete -p gpucache").returncode == 0


def test_every_public_name_but_values_and_errors_is_in_the_readme():
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
    assert [
        name for name in sorted(unsaid) if f"`{name}" not in TEXT and f"`.{name}" not in TEXT
    ] == []


def test_every_command_is_in_the_readme():
    assert [name for name in cli.list_commands(None) if f"gpucache {name}" not in TEXT] == []


def test_every_command_prints_json_but_those_that_are_said_not_to():
    (sentence,) = re.findall(r"`--json` on every command but (.*?),\s+which", TEXT, re.DOTALL)
    without = set()
    for name in cli.list_commands(None):
        command = cli.get_command(None, name)
        of_group = getattr(command, "commands", {name: command})
        for one in of_group.values():
            if not any("--json" in option.opts for option in one.params):
                without.add(name)
    assert without == set(re.findall(r"`(\w+)`", sentence))


def test_every_option_is_in_the_readme():
    commands = [cli.get_command(None, name) for name in cli.list_commands(None)]
    options = [parameter for command in commands for parameter in command.params]
    names = {
        name
        for option in options
        for name in option.opts + option.secondary_opts
        if name.startswith("--")
    }
    assert names >= {"--root", "--require-gpu", "--no-plugin"}
    assert sorted(name for name in names if name not in TEXT) == []
