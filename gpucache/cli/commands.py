"""Which module has which command, and how click runs one: a command's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

from gpucache import __version__

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
    "caches": "jit_caches",
    "ls": "caches",
    "du": "caches",
    "prune": "removals",
    "clean": "removals",
    "report": "report",
    "verify": "caches",
    "doctor": "diagnosis",
    "explain": "diagnosis",
    "config": "diagnosis",
}


def run_with_click(words: Sequence[str]) -> int:
    """Let click read these words and run their command; returns the exit code. Click shows the errors of usage."""
    try:
        code: int | None = cli.main(args=list(words), prog_name="gpucache", standalone_mode=False)
        return code or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130


class _Commands(click.Group):
    """All commands of `gpucache`. The module of a command is imported when that command is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(_HOME)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name; None where there is none."""
        if name not in _HOME:
            return None
        module = import_module(f"gpucache.cli.{_HOME[name]}")
        command: click.Command = getattr(module, name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Give every GPU its own safe Triton cache directory, and see, bound and mend what is in them.

    \b
    gpucache demo                                   see what it is for, on any machine
    gpucache provision                              make the directories
    gpucache run -- python train.py                 start a command in its device's
    torchrun --no-python … gpucache run -- python train.py
    gpucache ls                                     what is cached
    gpucache doctor                                 what will hurt
    """
