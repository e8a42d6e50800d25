"""Which remote a command is about, and who is believed about what lies there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpucache.cli.common import command_settings

if TYPE_CHECKING:
    from gpucache.archive.read import Judge
    from gpucache.remote.url import RemoteUrl

remote_option = click.option(
    "--remote", metavar="URL", help="The remote, instead of $GPUCACHE_REMOTE."
)


def named_remote(given: str | None) -> RemoteUrl:
    """The remote of a command, whose option ``--remote`` has this value.

    Raises:
        NoRemoteError: neither the option nor `GPUCACHE_REMOTE` names one.
        ConfigurationError, RemoteUrlError: what names it makes no sense.
    """
    from gpucache.remote.errors import NoRemoteError
    from gpucache.remote.url import RemoteUrl

    url = RemoteUrl.configured(command_settings()) if given is None else RemoteUrl.parse(given)
    if url is None:
        raise NoRemoteError
    return url


def believed(url: RemoteUrl) -> Judge:
    """Who judges what comes from a remote.

    Raises:
        NobodyTrustedError: nobody is trusted, and what comes is executed.
        BadKey, ConfigurationError: what should be trusted makes no sense.
    """
    from gpucache.remote.errors import NobodyTrustedError
    from gpucache.remote.trusting import judge_of

    judge = judge_of(url, command_settings())
    if judge is None:
        raise NobodyTrustedError(url.shown)
    return judge
