"""The README leads to all pages, and says what is there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from support.cli import README, TEXT
from support.snippets import ALL_TEXT, DOCS
from support.stand_in_commands import stand_in_commands

from gpucache import __all__ as public
from gpucache.cli.commands import cli

INSTALLS = [
    block.strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if "pip" in block
]


def test_the_install_commands_are_the_ones_that_ci_runs():
    assert [" ".join(block.split()) for block in INSTALLS] == [
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
