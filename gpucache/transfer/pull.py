"""Take a pack of a remote into a root, and tell the node meanwhile which keys are coming.

The statement comes first. So once its signature was believed, the keys that the store lacks are known before any of
their files has come: they are put down (`gpucache.remote.pulls`), and whoever misses one of them waits for it instead
of compiling. Of a pack whose entries are all there no more than the statement is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.read import PackReader
from gpucache.archive.unpack import Unpacked, everything
from gpucache.disk.fitness import statvfs
from gpucache.layout import paths
from gpucache.remote.object_names import pack_object
from gpucache.store.stats import REMOTE as NO_DEVICE
from gpucache.store.stats import Stats
from gpucache.transfer.bring import bring
from gpucache.transfer.seen_numbers import note_number, seen_number
from gpucache.transfer.source import Source

if TYPE_CHECKING:
    from gpucache.archive.read import Judge
    from gpucache.archive.statement import ArchivedEntry, Statement
    from gpucache.archive.unpack import Progress
    from gpucache.disk.vetting import Trust
    from gpucache.remote.pulls import Pull
    from gpucache.remote.remote import Remote

_STATEMENT_BYTES = 128 * 2**20
"""More than the compressed statement of any pack has, with what stands around its files."""
_UNKNOWN_BYTES = 2**40
"""How long a pack may be where the file system does not tell how much room it has."""


class PulledPack(NamedTuple):
    """What a pull of a pack has brought, or with ``dry_run`` what it would."""

    statement: Statement
    signer: str | None
    """Whose key has signed the pack; None for a remote whose files are trusted by their owners."""
    seen: int | None
    """The highest number of a pack of this name that this root had seen before; None where none is known."""
    unpacked: Unpacked
    received_bytes: int

    @property
    def is_older(self) -> bool:
        """Whether a newer pack of this name was seen before: somebody may have put an old one in its place."""
        return self.seen is not None and self.statement.number < self.seen


def pull_pack(
    remote: Remote,
    name: str,
    root: str,
    trust: Trust,
    judge: Judge,
    *,
    chosen: Callable[[ArchivedEntry], bool] = everything,
    pull: Pull | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> PulledPack:
    """Take the chosen entries of a remote's pack into a root, as far as they fit here and are not there yet.

    ``judge`` says whom to believe. ``pull`` is the node's file for this pull, which the caller has begun and ends; None
    where nobody is to wait. What was taken before an error stays, and the next pull goes on from there.

    Raises:
        NotThere: the remote has no such pack.
        RemoteError: the remote failed, at once or in the middle.
        BadPack: nobody trusted vouches for the pack, it is not what it says, or it is a pack of another name.
        GpuCacheError: the root is not safe, or has too little room.
        OSError: the disk refused.
        ValueError: no pack may have this name.
    """
    began = time.monotonic()
    object_name = pack_object(name)
    if pull is not None:
        pull.ask()
    with remote.get(object_name, _most_bytes(root)) as file:
        source = Source(file, remote, object_name, pull)
        with PackReader(source, judge, source_name=f"{remote.shown} {object_name}") as reader:
            check_name(reader, name)
            seen = seen_number(root, name)
            unpacked = _taken(reader, root, trust, chosen, pull, dry_run, on_progress)
            done = PulledPack(
                reader.statement, reader.signer, seen, unpacked, source.received_bytes
            )
    if not dry_run:
        _note(root, done, time.monotonic() - began)
    return done


def check_name(reader: PackReader, name: str) -> None:
    """Refuse a pack that lies under another name than the one that is signed.

    Raises:
        BadPack: it does.
    """
    signed = reader.statement.name
    if signed != name:
        said = quoted(signed) if signed else "a single entry"
        raise BadPack(
            "another-name", f"it is the pack {said}, served as {quoted(name)}", reader.source_name
        )


def _taken(
    reader: PackReader,
    root: str,
    trust: Trust,
    chosen: Callable[[ArchivedEntry], bool],
    pull: Pull | None,
    dry_run: bool,
    on_progress: Progress | None,
) -> Unpacked:
    plan = bring(reader, root, trust, chosen=chosen, dry_run=True)
    if dry_run or not plan.made:
        return plan
    if pull is not None:
        with suppress(OSError):  # a full disk: nobody waits, and the first file will tell
            pull.bring([entry.store_key for entry in plan.made if entry.kind != "inductor"])
    coming = set(map(id, plan.made))

    def told(done: int, total: int) -> None:
        if pull is not None:
            pull.beat()
        if on_progress is not None:
            on_progress(done, total)

    done = bring(reader, root, trust, chosen=lambda entry: id(entry) in coming, on_progress=told)
    left = [one for one in done.skipped if id(one.entry) in coming]
    return done._replace(there=plan.there + done.there, skipped=(*plan.skipped, *left))


def _most_bytes(root: str) -> int:
    """The most bytes that a pack may have of which something can be taken: no more than there is room for."""
    while not os.path.lexists(root):
        root = os.path.dirname(root)
    with suppress(OSError):
        disk = statvfs(root)
        if disk is not None and disk.f_blocks:
            return disk.f_bavail * disk.f_frsize + _STATEMENT_BYTES
    return _UNKNOWN_BYTES


def _note(root: str, done: PulledPack, seconds: float) -> None:
    """Remember the pack's number, and count what has come; a disk that refuses keeps no pull from its end."""
    statement, made = done.statement, done.unpacked.made
    stats = Stats(paths.ours(root, "stats"), NO_DEVICE)
    stats.add("pulled", len(made))
    stats.add("pulled_bytes", done.received_bytes)
    stats.add("pull_s", seconds, now=True)
    with suppress(OSError):
        note_number(root, statement.name, statement.number)
