"""The command `unpack`, which takes a file of entries into the store, and how it tells of them."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import command_settings, counted, naming, vetted
from gpucache.cli.options import arch_option, is_arch, json_option, root_option
from gpucache.cli.terminal import print_json, progress, say
from gpucache.environment import MAX_SIZE
from gpucache.errors import ProvisionError
from gpucache.layout.paths import resolve_root
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from gpucache.archive.statement import ArchivedEntry
    from gpucache.archive.unpack import Skipped, Unpacked

_STREAM = "-"


views_option = click.option(
    "--views",
    is_flag=True,
    help="Also into the directory of each device on record, for a Triton without the plug-in.",
)


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(readable=False, allow_dash=True))
@arch_option
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be taken.")
@click.option(
    "--unsigned",
    is_flag=True,
    help="Also a pack that no trusted key has signed, if its file is yours, root's or a trusted user's.",
)
@views_option
@root_option
@json_option
def unpack(
    file: str,
    arch: str | None,
    dry_run: bool,
    unsigned: bool,
    views: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Take the entries of a pack into the store, where each is a hit on every device.

    FILE is what `gpucache pack` wrote; - is stdin. GPUCACHE_TRUST_KEYS says whose signature is believed. What is there
    stays; what does not fit this node, as a library for another Python, is left out. With --arch, what has no
    architecture is taken too.

    \b
    gpucache unpack kernels.tar.zst
    gpucache unpack kernels.tar.zst --arch sm_90 --dry-run
    curl -s https://host/kernels.tar.zst | gpucache unpack -
    """
    from gpucache.archive.read import PackReader
    from gpucache.archive.trusted_keys import TrustedKeys
    from gpucache.disk.vetting import Trust
    from gpucache.transfer.bring import bring, is_own_file, judge_of, vet_source
    from gpucache.transfer.seen_numbers import seen_number
    from gpucache.transfer.views import device_directories, make_views

    check_arch(arch)
    trust = Trust.parse(command_settings())
    trusted = TrustedKeys.from_environ(command_settings())
    where = root_to_fill(root)
    directories = device_directories(where) if views else []

    with ExitStack() as opened:
        source = opened.enter_context(_opened_input(file))
        vouch = partial(vet_source, source, file, trust) if unsigned else None
        judge = judge_of(trusted, vouch)
        called = "stdin" if file == "-" else file
        reader = opened.enter_context(PackReader(source, judge, source_name=called))
        show = opened.enter_context(progress("unpacking"))
        statement, signer = reader.statement, reader.signer
        is_own = is_own_file(source)
        seen = seen_number(where, statement.name)
        if seen is not None and statement.number < seen:
            said = f"{file} is number {statement.number} of {statement.name}"
            say(f"warning: {said}, and number {seen} was seen here: an older pack than that")
        done = bring(
            reader,
            where,
            trust,
            chosen=chosen_by(arch),
            is_own=is_own,
            dry_run=dry_run,
            on_progress=show,
        )
    viewed = 0 if dry_run else make_views(where, [*done.made, *done.there], directories)
    if as_json:
        row = {"root": where, "file": file, "name": statement.name, "number": statement.number}
        print_json({**row, "signer": signer, "dry_run": dry_run, **unpacked_row(done, viewed)})
    else:
        tell_unpacked(where, done, dry_run, viewed)
    return 0


def check_arch(arch: str | None) -> None:
    """Refuse the value of ``--arch`` that is no architecture, by which nothing would be chosen.

    Raises:
        UsageError: it is none.
    """
    if arch is not None and not is_arch(arch):
        raise click.UsageError(f"--arch {arch!r} is no architecture, such as sm_90 or gfx942")


def chosen_by(arch: str | None) -> Callable[[ArchivedEntry], bool]:
    """What ``--arch`` chooses of a pack: kernels of this architecture, and what has none; without a value, all."""

    def chosen(entry: ArchivedEntry) -> bool:
        return arch is None or entry.kind != "kernel" or entry.arch == arch

    return chosen


def root_to_fill(root: str | None) -> str:
    """The root that a pack is taken into: vetted, or not there yet, since `unpack` makes one.

    Raises:
        NoRootError: something else is there.
        UnsafeDirectoryError, ProvisionError: as `vetted`.
    """
    where = resolve_root(root, command_settings())
    if os.path.lexists(where):
        return vetted(root)
    from gpucache.disk.root import refuse_device_directory
    from gpucache.disk.vetting import Trust, vet

    vet(where, Trust.parse(command_settings()))
    refuse_device_directory(where, naming(root))
    return where


@contextmanager
def _opened_input(file: str) -> Iterator[BinaryIO]:
    """The stream of a pack.

    Raises:
        UsageError: stdin is closed, or a terminal.
        ProvisionError: the file cannot be read.
    """
    if file == _STREAM:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("stdin has no pack: name a FILE, or pipe one in")
        yield sys.stdin.buffer
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below; an error while it is read is another
    except OSError as error:
        hint = "name a file that `gpucache pack` has written"
        raise ProvisionError(file, error.errno or 0, hint, "look at") from error
    with opened:
        yield opened


_NO_FIT = {
    "not chosen": "not chosen",
    "unsigned": "of TorchInductor's, which is taken only signed, or from a file of yours",
    "name": "with letters that this locale lacks (LC_ALL=C.UTF-8 has them)",
    "machine": "for another processor",
    "abi": "for another Python",
    "libc": "for another libc",
    "cpu": "for other instructions of a processor",
    "torch": "for another torch",
    "device": "measured on a device that is not here",
    "busy": "in use or in the way here (--json tells more)",
}


def unpacked_row(done: Unpacked, viewed: int = 0) -> dict[str, Any]:
    """What became of a pack's entries, for JSON; ``viewed`` is how many views of them are there by `--views`."""
    skipped = []
    for one in done.skipped:
        skipped.append({**entry_row(one.entry), "why": one.why, "fact": one.fact})
    return {
        "made": list(map(entry_row, done.made)),
        "there": list(map(entry_row, done.there)),
        "skipped": skipped,
        "made_bytes": done.made_bytes,
        "views": viewed,
    }


def tell_unpacked(root: str, done: Unpacked, dry_run: bool, viewed: int = 0) -> None:
    """Say what became of a pack's entries, and what a person should know of the root."""
    from gpucache.transfer.bring import over_limit_bytes

    verb = "would take" if dry_run else "took"
    parts = [f"{verb} {counted(len(done.made), 'entry', 'entries')}, {size(done.made_bytes)}"]
    if done.there:
        parts.append(f"{len(done.there)} there already")
    for why, count in _counts(done.skipped).items():
        parts.append(f"{count} {_NO_FIT[why]}")
    if viewed:
        parts.append(f"{counted(viewed, 'view', 'views')} in device directories")
    say(f"note: {'; '.join(parts)}")
    others = _others_than_chosen(done)
    if others:
        say(f"warning: it has no kernel for that architecture, but for {', '.join(others)}")
    over = None if dry_run else over_limit_bytes(root, command_settings())
    if over is not None:
        taken, allowed = over
        said = f"the store takes {size(taken)}, more than {MAX_SIZE.name} allows ({size(allowed)})"
        say(f"warning: {said}: the next compile removes what was used least recently")


def _others_than_chosen(done: Unpacked) -> list[str]:
    """The architectures of a pack's kernels, where `--arch` has chosen none of them."""
    if any(entry.kind == "kernel" for entry in (*done.made, *done.there)):
        return []
    kernels = [one for one in done.skipped if one.entry.kind == "kernel"]
    if any(one.why != "not chosen" for one in kernels):
        return []
    return sorted({one.entry.arch or "unknown" for one in kernels})


def _counts(skipped: Sequence[Skipped]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in skipped:
        counts[one.why] = counts.get(one.why, 0) + 1
    return counts


def entry_row(entry: ArchivedEntry) -> dict[str, Any]:
    """An entry of a pack, for JSON."""
    return {
        "key": entry.store_key,
        "kind": entry.kind,
        "kernel": entry.facts.kernel,
        "arch": entry.arch,
        "triton_version": entry.facts.triton_version,
        "bytes": entry.size_bytes,
    }
