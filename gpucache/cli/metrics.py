"""The command `gpucache metrics`: numbers for Prometheus, on stdout, in a file, or served."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from gpucache.cli.common import command_settings, existing, fold_counters
from gpucache.cli.options import path_of, root_option
from gpucache.cli.output_file import whole_file
from gpucache.cli.settings import settings_of
from gpucache.cli.terminal import print_data, say
from gpucache.errors import GpuCacheError, NoRootError
from gpucache.watch.metrics.address import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpucache.watch.metrics.families import Family, Hosts

_READABLE = 0o644
"""Node_exporter is another user."""
_WAY_OUT = (
    "name a file in a directory that is there and can be written, as node_exporter's is by root"
)


def _textfile(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A path whose name node_exporter reads."""
    path = path_of(context, option, value)
    if path is not None and not path.endswith(".prom"):
        raise click.BadParameter(f"node_exporter reads files that end in .prom, not {path!r}")
    return path


def _address(context: click.Context, option: click.Parameter, value: str | None) -> Address | None:
    """The address that a text means."""
    try:
        return None if value is None else Address.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--textfile",
    metavar="FILE.prom",
    callback=_textfile,
    help="Write them into this file, for node_exporter's textfile collector.",
)
@click.option(
    "--serve",
    metavar="[ADDR:]PORT",
    callback=_address,
    help="Serve them over HTTP; by itself for this machine alone (127.0.0.1).",
)
@click.option(
    "--all-hosts",
    is_flag=True,
    help="What every host has counted in the root; else this one, as each exports its own.",
)
@root_option
def metrics(textfile: str | None, serve: Address | None, all_hosts: bool, root: str | None) -> None:
    """Print what was counted, what the store takes, and what doctor and verify found last, for Prometheus.

    Needs the extra `watch`. Does not walk the cache: costs as much as `gpucache stats`.

    \b
    gpucache metrics
    gpucache metrics --textfile /var/lib/prometheus/node-exporter/gpucache.prom
    gpucache metrics --serve 9400
    """
    from gpucache.watch.metrics.exposition import check_installed, text

    if textfile is not None and serve is not None:
        raise click.UsageError("--textfile and --serve exclude each other")
    check_installed()
    where = existing(root)
    hosts: Hosts = "all" if all_hosts else "own"
    if serve is not None:
        _serve(serve, where, hosts)
        return
    fold_counters(where)
    data = text(_look(where, hosts))
    if textfile is None:
        print_data(data.decode().removesuffix("\n"))
        return
    with whole_file(textfile, _READABLE, _WAY_OUT) as file:
        file.write(data)


def _look(where: str, hosts: Hosts) -> Iterable[Family]:
    """The numbers of a root as they are now.

    Raises:
        GpuCacheError: others may have planted what lies there, or it cannot be read.
    """
    from gpucache.disk.refusal import refusal
    from gpucache.disk.vetting import Trust, vet
    from gpucache.layout.paths import ours
    from gpucache.watch.metrics.families import families

    vet(where, Trust.parse(command_settings()).in_root(where))
    try:
        return families(where, settings_of(where), hosts)
    except OSError as error:
        raise refusal(ours(where, "stats"), error, "look at") from error


class _Looking:
    """Looks again and again at a root, which is there from the first look at which it is; says once what is wrong."""

    def __init__(self, where: str, hosts: Hosts) -> None:
        self._where = where
        self._hosts = hosts
        self._was_there = False
        self._said = ""

    def __call__(self) -> Iterable[Family]:
        """The numbers.

        Raises:
            GpuCacheError: as `_look`, and the root was there before, and is no more: perhaps a mount is missing.
        """
        try:
            self._check_there()
            found = _look(self._where, self._hosts)
        except GpuCacheError as error:
            if str(error.problem) != self._said:
                say(f"warning: no metrics now: {error.problem}")
            self._said = str(error.problem)
            raise
        self._said = ""
        return found

    def _check_there(self) -> None:
        from gpucache.layout.paths import ours

        is_there = os.path.isdir(ours(self._where))
        if self._was_there and not is_there:
            raise NoRootError(self._where, "missing")
        self._was_there = is_there


def _serve(address: Address, where: str, hosts: Hosts) -> None:
    """Serve until interrupted."""
    from gpucache.watch.metrics.serving import MetricsServer

    look = _Looking(where, hosts)
    look()  # a root that cannot be told of is an error of this command
    server = MetricsServer(address, look)
    say(f"note: metrics of {where} are at {server.address.url}")
    server.serve()
