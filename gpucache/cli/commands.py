"""Which module has which command, and how click runs one: a command's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

from gpucache import __version__
from gpucache.cli.failures import tell_failure, wants_json
from gpucache.cli.groups import SuggestingGroup, completed, quiet_option
from gpucache.cli.options import json_option, root_option
from gpucache.cli.usage import usage_words

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order of a cache's life, which is that of the help.
_HOME = {
    "demo": "demo",
    "devices": "devices",
    "provision": "devices",
    "path": "path_and_env_options",
    "env": "path_and_env_options",
    "run": "run_options",
    "recipe": "recipes",
    "warm": "warm",
    "pack": "transfer",
    "unpack": "transfer_unpack",
    "keygen": "transfer",
    "push": "transfer_push",
    "pull": "transfer_pull",
    "remote": "remote",
    "stats": "stats",
    "top": "top",
    "metrics": "metrics",
    "caches": "jit_caches",
    "ls": "caches",
    "du": "du",
    "rm": "rm",
    "prune": "removals",
    "clean": "removals",
    "report": "report",
    "verify": "caches",
    "doctor": "diagnosis",
    "why": "why",
    "compare": "compare",
    "cat": "cat",
    "explain": "diagnosis",
    "config": "diagnosis",
    "completion": "completion",
}


_ALIASES = {"list": "ls"}
"""Other names of commands, which the help does not list."""


def run_with_click(words: Sequence[str]) -> int:
    """Let click read these words and run their command; returns the exit code. Wrong usage is told as any error."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        code: int | None = cli.main(args=list(words), prog_name="gpucache", standalone_mode=False)
        return code or 0
    except click.ClickException as error:
        if not words:
            error.show()  # the help: nothing was wrong but that nothing was asked
            return error.exit_code
        problem, hint = usage_words(error, words)
        tell_failure("usage", problem, hint, as_json=wants_json(words))
        return error.exit_code
    except click.Abort:
        return 130


class _Commands(SuggestingGroup):
    """All commands of `gpucache`. The module of a command is imported when that command is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(_HOME)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name; None where there is none."""
        name = _ALIASES.get(name, name)
        if name not in _HOME:
            return None
        module = import_module(f"gpucache.cli.{_HOME[name]}")
        command: click.Command = getattr(module, name)
        return completed(command)


@click.group(
    cls=_Commands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "--version", "-V")
@root_option
@json_option
@quiet_option
def cli(root: str | None, as_json: bool, quiet: bool) -> None:
    """Give every GPU its own safe Triton cache directory, and see, bound and mend what is in them.

    \b
    gpucache demo                                   see what it is for, on any machine
    gpucache provision                              make the directories
    gpucache run -- python train.py                 start a command in its device's
    torchrun --no-python … gpucache run -- python train.py
    gpucache ls                                     what is cached
    gpucache doctor                                 what will hurt
    """
