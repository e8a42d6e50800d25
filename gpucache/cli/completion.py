"""The command `gpucache completion`, which prints what turns on completion in a shell."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from gpucache.cli.quick import COMPLETION
from gpucache.cli.terminal import print_data
from gpucache.cli.usage import WrongUseError

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL", required=False)
def completion(shell: str | None) -> None:
    """Print the script by which SHELL (bash, zsh or fish; by default $SHELL) completes commands, keys and kernels.

    \b
    eval "$(gpucache completion bash)"                                      # in ~/.bashrc
    gpucache completion zsh > "${fpath[1]}/_gpucache"
    gpucache completion fish > ~/.config/fish/completions/gpucache.fish
    """
    from gpucache.cli.commands import cli  # which imports this module for the help of all

    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    found = get_completion_class(shell)
    if shell not in _SHELLS or found is None:
        problem = f"{shell!r} is no shell that is known" if shell else "SHELL is not set"
        raise WrongUseError(problem, f"name one of {', '.join(_SHELLS)}")
    print_data(found(cli, {}, "gpucache", COMPLETION).source().rstrip("\n"))
