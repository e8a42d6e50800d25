"""The command `pull`, which takes packs and entries from a remote into the store."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gpucache.cli.common import command_settings, counted, tell
from gpucache.cli.options import arch_option, json_option, root_option
from gpucache.cli.terminal import print_json, progress, say
from gpucache.cli.transfer_remote import believed, named_remote, remote_option
from gpucache.cli.transfer_unpack import (
    check_arch,
    chosen_by,
    entry_row,
    root_to_fill,
    tell_unpacked,
    unpacked_row,
    views_option,
)
from gpucache.environment import STALL_TIMEOUT
from gpucache.errors import ConfigurationError
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from gpucache.remote.object_names import EntryName
    from gpucache.remote.pulls import Pull
    from gpucache.remote.url import RemoteUrl
    from gpucache.transfer.pull import PulledPack
    from gpucache.transfer.pull_entries import PulledEntries


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@arch_option
@click.option(
    "--triton-version",
    metavar="VERSION",
    help="Without NAME: only single entries of this Triton, such as 3.6.0.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be taken.")
@views_option
@remote_option
@root_option
@json_option
def pull(
    name: str | None,
    arch: str | None,
    triton_version: str | None,
    dry_run: bool,
    views: bool,
    remote: str | None,
    root: str | None,
    as_json: bool,
) -> int:
    """Take the pack NAME of the remote into the store, or without NAME all its single entries.

    GPUCACHE_TRUST_KEYS says whose signature is believed. What is there stays; what does not fit this node is left out.
    Meanwhile a process of this node that misses a kernel of the pack waits for it. A pull that was interrupted goes on
    when it is called again.

    \b
    gpucache pull llama
    gpucache pull llama --arch sm_90 --dry-run
    gpucache pull --triton-version 3.6.0 --remote file:///shared/kernels
    GPUCACHE_PACK=llama gpucache run -- python train.py
    """
    from gpucache.transfer.views import device_directories

    if name is not None and triton_version is not None:
        raise click.UsageError("--triton-version is for single entries: leave out NAME")
    check_arch(arch)
    _check(name, triton_version)
    url = named_remote(remote)
    where = root_to_fill(root)
    directories = device_directories(where) if views else []
    asked = _Asked(url, where, arch, dry_run, directories, as_json)
    if name is not None:
        return _pull_pack(name, asked)
    return _pull_entries(triton_version, asked)


def _check(name: str | None, triton_version: str | None) -> None:
    """Refuse what can be the name of no pack, or no version.

    Raises:
        PackNameError, ConfigurationError: it is none.
    """
    from gpucache.archive.statement import PackNameError, is_name
    from gpucache.remote.object_names import A_VERSION, is_version

    if name is not None and not is_name(name):
        raise PackNameError(name, "look at `gpucache remote ls`")
    if triton_version is not None and not is_version(triton_version):
        raise ConfigurationError("--triton-version", triton_version, A_VERSION)


class _Asked(NamedTuple):
    """What pulls of both kinds are told."""

    url: RemoteUrl
    root: str
    arch: str | None
    dry_run: bool
    directories: Sequence[str]
    """Those of devices, in which kernels get views."""
    as_json: bool

    def begun(self, what: str, *words: str) -> AbstractContextManager[Pull | None]:
        """Be at the pull of these words, for which others may wait; nothing of the kind with ``dry_run``."""
        from gpucache.disk.locks import holder
        from gpucache.disk.vetting import Trust
        from gpucache.remote.pulls import pulling
        from gpucache.transfer.bring import make_ready

        if self.dry_run:
            return nullcontext()
        make_ready(self.root, Trust.parse(command_settings()))
        stall_s = STALL_TIMEOUT.read_or_default(command_settings())
        known = (self.url.shown, *words, self.arch or "")
        return pulling(
            self.root, known, what, stall_s, lambda path: say(f"note: waiting for {holder(path)}")
        )

    def viewed(self, kernels: Sequence[str]) -> int:
        """Give these kernels views, where that was asked for; how many are there then."""
        from gpucache.transfer.views import make_views_of

        if self.dry_run or not self.directories:
            return 0
        return make_views_of(self.root, kernels, self.directories)


# ---- packs


def _pull_pack(name: str, asked: _Asked) -> int:
    from gpucache.disk.vetting import Trust
    from gpucache.remote.opening import open_remote
    from gpucache.transfer.pull import pull_pack
    from gpucache.transfer.source import PATIENCE

    judge = believed(asked.url)
    with asked.begun(f"the pull of {name}", "pack", name) as held, progress("pulling") as show:
        done = pull_pack(
            open_remote(asked.url, command_settings(), PATIENCE),
            name,
            asked.root,
            Trust.parse(command_settings()),
            judge,
            chosen=chosen_by(asked.arch),
            pull=held,
            dry_run=asked.dry_run,
            on_progress=show,
        )
    unpacked = done.unpacked
    kernels = [one.key for one in (*unpacked.made, *unpacked.there) if one.kind == "kernel"]
    viewed = asked.viewed(kernels)
    if asked.as_json:
        print_json(_pack_row(asked, done, viewed))
        return 0
    if done.is_older:
        statement = done.statement
        said = f"{asked.url.shown} has number {statement.number} of {statement.name}"
        say(f"warning: {said}, and number {done.seen} was seen here: an older pack than that")
    tell_unpacked(asked.root, unpacked, asked.dry_run, viewed)
    return 0


def _pack_row(asked: _Asked, done: PulledPack, viewed: int) -> dict[str, Any]:
    return {
        "root": asked.root,
        "remote": asked.url.shown,
        "name": done.statement.name,
        "number": done.statement.number,
        "seen": done.seen,
        "signer": done.signer,
        "dry_run": asked.dry_run,
        **unpacked_row(done.unpacked, viewed),
        "received_bytes": done.received_bytes,
    }


# ---- single entries


def _pull_entries(triton_version: str | None, asked: _Asked) -> int:
    from gpucache.disk.vetting import Trust
    from gpucache.remote.opening import open_remote
    from gpucache.transfer.pull_entries import MOST_LISTED, pull_entries

    judge = believed(asked.url)
    begun = asked.begun("the pull of single entries", "entries", triton_version or "")
    with begun as held, progress("pulling") as show:
        done = pull_entries(
            open_remote(asked.url, command_settings()),
            asked.root,
            Trust.parse(command_settings()),
            judge,
            triton_version=triton_version,
            chosen=chosen_by(asked.arch),
            pull=held,
            dry_run=asked.dry_run,
            on_progress=show,
        )
    if done.lists_more:
        limit = f"more than {MOST_LISTED} objects, of which these were looked at"
        say(f"warning: {asked.url.shown} lists {limit}; --triton-version narrows the list")
    kernels = [entry.key for entry in done.made]
    kernels += [name.store_key for name in done.there]
    viewed = asked.viewed(kernels)
    if asked.as_json:
        print_json(_entries_row(asked, done, viewed))
    else:
        _tell_entries(done, asked.dry_run, viewed)
    return 1 if done.refused else 0


def _entries_row(asked: _Asked, done: PulledEntries, viewed: int) -> dict[str, Any]:
    refused = []
    for one in done.refused:
        refused.append({**_name_row(one.name), "fact": one.error.problem})
    skipped = [{**entry_row(one.entry), "why": one.why} for one in done.skipped]
    return {
        "root": asked.root,
        "remote": asked.url.shown,
        "dry_run": asked.dry_run,
        "there": list(map(_name_row, done.there)),
        "missing": list(map(_name_row, done.missing)),
        "made": list(map(entry_row, done.made)),
        "skipped": skipped,
        "refused": refused,
        "views": viewed,
        "received_bytes": done.received_bytes,
    }


def _name_row(name: EntryName) -> dict[str, str]:
    return {"key": name.store_key, "triton_version": name.triton_version}


def _tell_entries(done: PulledEntries, dry_run: bool, viewed: int) -> None:
    tell([f"error: {one.error.problem}" for one in done.refused])
    listed = len(done.there) + len(done.missing)
    if dry_run:
        parts = [f"would get {counted(len(done.missing), 'entry', 'entries')} of {listed}"]
    else:
        made = size(sum(entry.size_bytes for entry in done.made))
        parts = [f"took {counted(len(done.made), 'entry', 'entries')} of {listed}, {made}"]
    if done.there:
        parts.append(f"{len(done.there)} there already")
    if done.skipped:
        parts.append(f"{len(done.skipped)} not chosen, or not fit for this node")
    if done.refused:
        parts.append(f"{len(done.refused)} refused")
    if viewed:
        parts.append(counted(viewed, "view", "views"))
    say(f"note: {'; '.join(parts)}")
