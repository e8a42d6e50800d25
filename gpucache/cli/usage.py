"""What a command says of wrong usage, in the one voice of all errors: the problem, and the way out as a hint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpucache.cli.failures import command_at
from gpucache.near import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


_MEANT = {
    "clear": "clean",
    "purge": "clean",
    "rmi": "rm",
    "delete": "rm",
    "remove": "rm",
    "gc": "prune",
    "monitor": "top",
    "watch": "top",
    "size": "du",
    "df": "du",
    "info": "doctor",
    "status": "doctor",
    "check": "verify",
    "init": "provision",
    "exec": "run",
    "diff": "compare",
    "export": "pack",
    "import": "unpack",
    "settings": "config",
    "version": "--version",
}
"""Words of other tools, and the command of ours that does such a thing."""


class WrongUseError(click.UsageError):
    """Words of a command line that make no sense together, or here; the hint says what does."""

    def __init__(self, problem: str, hint: str, context: click.Context | None = None) -> None:
        super().__init__(problem, context)
        self.hint = hint


def usage_words(error: click.ClickException, words: Sequence[str]) -> tuple[str, str]:
    """The problem and the hint of an error of click's, or of ours that click passes on.

    ``words`` are those of the command line.
    """
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name} needs a value", _see_help_of(words)
    if isinstance(error, WrongUseError):
        return error.message, error.hint
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error.option_name, context)
    if isinstance(error, click.MissingParameter):
        return f"{_name_of(error)} is missing", _usage(context)
    if isinstance(error, click.BadParameter):
        return f"{_name_of(error)}: {_plain(error.message)}", _see_help(context)
    return _plain(error.format_message()), _see_help(context)


def _no_such_option(name: str, context: click.Context | None) -> tuple[str, str]:
    problem = f"no such option {name}"
    if context is None:
        return problem, ""
    near = nearest(name, _options(context.command))
    if near is not None:
        return problem, f"{near} may be meant; {_see_help(context)}"
    return problem, _see_help(context)


def no_such_command(name: str, known: Collection[str], context: click.Context) -> WrongUseError:
    """The error of a command that is none; the hint names the command that may be meant."""
    path = context.command_path
    near = nearest(name, known)
    if name in _MEANT and (_MEANT[name] in known or name == "version"):
        near = _MEANT[name]
    hint = f"`{path} --help` lists all"
    if near is not None:
        hint = f"`{path} {near}` may be meant; {hint}"
    return WrongUseError(f"there is no command {f'{path} {name}'!r}", hint, context)


def _options(command: click.Command) -> Iterable[str]:
    """Every option of a command, as it is written."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from parameter.opts
            yield from parameter.secondary_opts


def _name_of(error: click.BadParameter) -> str:
    """The option or argument that an error is about, as people write it."""
    if isinstance(error.param_hint, str):
        return error.param_hint.strip("'")
    parameter = error.param
    if parameter is None or error.ctx is None:
        return "a value"
    if isinstance(parameter, click.Option):
        return next(name for name in parameter.opts if name.startswith("--"))
    return parameter.make_metavar(error.ctx).strip("[].")


def _plain(message: str) -> str:
    """The message as errors of ours are written: it begins small, and ends without a period."""
    message = message.removesuffix(".")
    begins_a_sentence = message[1:2].islower()  # and is no name, such as KEY
    return message[:1].lower() + message[1:] if begins_a_sentence else message


def _usage(context: click.Context | None) -> str:
    """How the command of a context is written."""
    if context is None:
        return ""
    pieces = context.command.collect_usage_pieces(context)
    written = " ".join([context.command_path, *pieces])
    return f"write it `{written}`; {_see_help(context)}"


def _see_help_of(words: Sequence[str]) -> str:
    """As `_see_help`, where click does not say which command an error is about."""
    at = command_at(words)
    path = "gpucache" if at is None else f"gpucache {words[at]}"
    return f"`{path} --help` shows how it is used"


def _see_help(context: click.Context | None) -> str:
    if context is None:
        return ""
    return f"`{context.command_path} --help` shows how it is used"
