"""The command `push`, which puts packs and entries to a remote."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import command_settings, counted, scanned, tell, vetted
from gpucache.cli.options import TIME, json_option, root_option
from gpucache.cli.terminal import print_json, progress, say
from gpucache.cli.transfer_remote import named_remote, remote_option
from gpucache.cli.transfer_unpack import entry_row
from gpucache.errors import ProvisionError
from gpucache.units import size

if TYPE_CHECKING:
    from gpucache.remote.url import RemoteUrl
    from gpucache.transfer.push import PushedEntries, PushedPack


@click.command()
@click.argument("file", metavar="[PACK]", required=False, type=click.Path())
@click.option(
    "--since",
    type=TIME,
    metavar="TIME",
    help="Instead of a PACK: each entry by itself that was used within so long (2h, 7d).",
)
@click.option("--replace", is_flag=True, help="Replace another pack of that name.")
@click.option("--dry-run", "-n", is_flag=True, help="Put nothing; show what would be put.")
@remote_option
@root_option
@json_option
def push(
    file: str | None,
    since: float | None,
    replace: bool,
    dry_run: bool,
    remote: str | None,
    root: str | None,
    as_json: bool,
) -> int:
    """Put PACK, a file that `gpucache pack` wrote, to the remote under its name, or entries of the store one by one.

    PACK was signed as it was packed; single entries are signed with the key that GPUCACHE_SIGN_KEY names. A pack that
    is there stays, unless --replace is said; an entry that is there is the same one.

    \b
    gpucache pack -o llama.tar.zst && gpucache push llama.tar.zst
    gpucache push --since 1d --remote s3://bucket/kernels
    """
    if file is None and since is None:
        raise click.UsageError("name a PACK, or say --since")
    if file is not None and since is not None:
        raise click.UsageError("name a PACK or say --since, not both")
    if file == "-":
        raise click.UsageError("a PACK is read twice, and so cannot be stdin: name a file")
    if replace and file is None:
        raise click.UsageError("--replace is for a PACK: an entry that is there is the same one")
    url = named_remote(remote)
    if file is not None:
        return _push_pack(url, file, replace, dry_run, as_json)
    assert since is not None
    return _push_entries(url, since, vetted(root), dry_run, as_json)


def _push_pack(url: RemoteUrl, file: str, replace: bool, dry_run: bool, as_json: bool) -> int:
    from gpucache.archive.signature import anyone
    from gpucache.remote.opening import open_remote
    from gpucache.transfer.push import push_pack, signed_by
    from gpucache.transfer.source import PATIENCE

    judge = anyone if url.is_by_owner else signed_by
    opened = open_remote(url.for_writing(), command_settings(), PATIENCE)
    if not os.path.isfile(file):
        hint = "name a file that `gpucache pack` has written"
        raise ProvisionError(file, errno.ENOENT, hint, "look at")
    with progress("reading") as show:
        done = push_pack(opened, file, judge, replace=replace, dry_run=dry_run, on_progress=show)
    if as_json:
        print_json(_pushed_row(url, file, done, dry_run))
        return 0
    statement = done.statement
    named = f"{statement.name}, number {statement.number}"
    many = counted(len(statement.entries), "entry", "entries")
    did = {"put": "put", "replaced": "put in the place of another", "there": "found there"}[
        done.did
    ]
    if dry_run:
        did = f"would be {did}"
    if done.is_older:
        said = f"number {statement.number} is lower than {done.replaced}, which was there"
        say(f"warning: {said}: nodes that have seen that are told of an older pack")
    where = f"at {url.shown}" if done.did == "there" else f"to {url.shown}"
    say(f"note: {many}, {size(os.path.getsize(file))}, {did}: {named}, {where}")
    return 0


def _pushed_row(url: RemoteUrl, file: str, done: PushedPack, dry_run: bool) -> dict[str, Any]:
    return {
        "file": file,
        "remote": url.shown,
        "name": done.statement.name,
        "number": done.statement.number,
        "signer": done.signer,
        "dry_run": dry_run,
        "did": done.did,
        "entries": list(map(entry_row, done.statement.entries)),
        "file_bytes": os.path.getsize(file),
    }


def _push_entries(url: RemoteUrl, since: float, root: str, dry_run: bool, as_json: bool) -> int:
    from gpucache.archive.signature import SigningKey
    from gpucache.disk.vetting import Trust
    from gpucache.remote.errors import NothingSignsError
    from gpucache.remote.opening import open_remote
    from gpucache.report.selection import Selection
    from gpucache.transfer.gather import gathered
    from gpucache.transfer.push import PushedEntries, push_entries, unfit

    signing = SigningKey.from_environ(command_settings())
    if signing is None and not url.is_by_owner:
        raise NothingSignsError(url.shown)
    opened = open_remote(url.for_writing(), command_settings())
    now, selection = time.time(), Selection(used_since_s=since)
    entries = [entry for entry in scanned(root).entries if selection.has(entry, now)]
    kernels = [entry for entry in entries if entry.kind == "kernel"]
    trust = Trust.parse(command_settings()).in_root(root)
    with (
        progress("looking") as looking,
        gathered(root, kernels, trust, on_progress=looking) as found,
    ):
        fitting = [one for one in found.collected if unfit(one.entry) is None]
        if dry_run:
            would = tuple(one.entry for one in fitting)
            done = PushedEntries(would, (), (), 0)
        else:
            with progress("pushing") as show:
                done = push_entries(opened, root, found.collected, signing, show)
        left_out = [(one.kernel, one.fact) for one in found.left_out]
    left_out += [(one.entry.facts.kernel, one.fact) for one in done.left_out]
    if as_json:
        print_json(_pushed_entries_row(root, url, done, left_out, dry_run))
        return 0
    tell([f"warning: left out {kernel}: {fact}" for kernel, fact in left_out])
    many = counted(len(done.put), "entry", "entries")
    parts = [f"put {many}, {size(done.sent_bytes)}"]
    if dry_run:
        parts = [f"would put {many}, as far as they are not there"]
    if done.there:
        parts.append(f"{len(done.there)} there already")
    say(f"note: {'; '.join(parts)}")
    return 0


def _pushed_entries_row(
    root: str,
    url: RemoteUrl,
    done: PushedEntries,
    left_out: list[tuple[str, str]],
    dry_run: bool,
) -> dict[str, Any]:
    return {
        "root": root,
        "remote": url.shown,
        "dry_run": dry_run,
        "put": list(map(entry_row, done.put)),
        "there": list(map(entry_row, done.there)),
        "left_out": [{"kernel": kernel, "fact": fact} for kernel, fact in left_out],
        "sent_bytes": done.sent_bytes,
    }
