"""How a command is found among others: what may be meant by a word that is none, and the options of every command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from gpucache.cli.quick import COMPLETION
from gpucache.cli.terminal import be_quiet
from gpucache.cli.usage import WrongUseError, no_such_command

_ACTS = ("provision", "prune", "clean", "rm", "warm", "pack", "unpack", "push", "pull", "keygen")
"""Commands that are called for what they do: where that goes well, --quiet has them print nothing."""


def _quieten(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        be_quiet(reports=context.info_name in _ACTS)


_HELP = "Say warnings and errors only; what is called to change something prints nothing else."
quiet_option = click.option("--quiet", "-q", is_flag=True, help=_HELP)
"""For a group, which hands it on to its command."""


class _Count(click.IntRange):
    """A whole number within bounds, which an error names in words."""

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The number."""
        try:
            return super().convert(value, param, context)
        except click.BadParameter:
            bounds = f"from {self.min} on" if self.max is None else f"from {self.min} to {self.max}"
            self.fail(f"{value!r} is not a whole number {bounds}", param, context)


def completed(command: click.Command) -> click.Command:
    """The command with what all have: ``--quiet``, and names out of the root for a shell that asks for them."""
    for parameter in command.params:
        if type(parameter.type) is click.IntRange:
            parameter.type = _Count(parameter.type.min, parameter.type.max)
    if COMPLETION in os.environ:
        from gpucache.cli.completing import with_completion

        with_completion(command)
    return _with_quiet(command)


def _with_quiet(command: click.Command) -> click.Command:
    """The command, which takes ``--quiet`` as each does."""
    if not _has(command, "--quiet"):
        names = ["--quiet", "-q"]
        option = click.Option(
            names, is_flag=True, expose_value=False, callback=_quieten, help=_HELP
        )
        command.params.append(option)
    return command


def _has(command: click.Command, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.params)


class SuggestingGroup(click.Group):
    """Commands of which an unknown one is an error that names the nearest.

    The options ``--root``, ``--json`` and ``--quiet`` that stand before the command hold as if they stood behind it.
    """

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name; None where there is none."""
        command = super().get_command(context, name)
        return None if command is None else completed(command)

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Read the options of this group; the rest is the command's.

        Raises:
            WrongUseError: no command is named.
        """
        if not words and not self.no_args_is_help and not context.resilient_parsing:
            listed = ", ".join(self.list_commands(context))
            raise WrongUseError("the command is missing", f"name one of {listed}", context)
        return super().parse_args(context, words)

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first of these words names, and the words for that command.

        Raises:
            WrongUseError: there is no such command, or it has no such option as stands before it.
        """
        name, *rest = words
        command = self.get_command(context, name)
        if command is None:
            if context.resilient_parsing:
                return name, None, rest
            raise no_such_command(name, self.list_commands(context), context)
        before: list[str] = []
        for given in _given(context):
            before += _behind(command, given, context)
        return command.name, command, [*before, *rest]


def _given(context: click.Context) -> list[list[str]]:
    """The options before the command that are that command's to read."""
    given = []
    root = context.params.get("root")
    if root is not None:
        given.append(["--root", root])
    if context.params.get("as_json"):
        given.append(["--json"])
    if context.params.get("quiet"):
        given.append(["--quiet"])
    return given


def _behind(command: click.Command, given: Sequence[str], context: click.Context) -> Sequence[str]:
    """The words of an option that stands before a command, for that command.

    Raises:
        WrongUseError: the command has no such option.
    """
    name = given[0]
    if _has(command, name):
        return given
    problem = f"`{context.command_path} {command.name}` has no option {name}"
    raise WrongUseError(problem, f"leave {name} out", context)
