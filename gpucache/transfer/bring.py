"""Take a pack from a stream into a root: whom to believe, what fits this node, and what then is worth a warning."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from gpucache.archive.errors import BadPack
from gpucache.archive.fits import Here, here
from gpucache.archive.unpack import Progress, Unpacked, unpack
from gpucache.directories.record import of_this_host
from gpucache.disk.files import make_root
from gpucache.disk.refusal import quoted
from gpucache.disk.vetting import Trust, vet, vet_way
from gpucache.errors import RecordError, UnsafeDirectoryError
from gpucache.store.limit import max_size_bytes
from gpucache.store.preparing import prepare
from gpucache.store.pulled import Pulled, PulledEntry, note_pulled, use_of_pull
from gpucache.store.size import total_bytes
from gpucache.transfer.seen_numbers import note_number

if TYPE_CHECKING:
    from gpucache.archive.read import Judge, PackReader
    from gpucache.archive.signature import Signature
    from gpucache.archive.statement import ArchivedEntry
    from gpucache.archive.trusted_keys import TrustedKeys


def judge_of(trusted: TrustedKeys | None, vouch: Callable[[], object] | None) -> Judge:
    """A judge who believes the signers of these keys, and where that was asked for also a pack that none has signed.

    ``vouch`` is called before such a pack is accepted, and so before any of it is parsed, and may refuse; None accepts
    none. A bad signature by a trusted name is never accepted.
    """

    def judge(message: bytes, signatures: Sequence[Signature]) -> str | None:
        try:
            if trusted is not None:
                return trusted.judge(message, signatures)
            if signatures:
                signers = ", ".join(one.name for one in signatures)
                raise BadPack("unknown-signer", f"it is signed by {signers}, and no key is trusted")
            raise BadPack("unsigned", "nobody has signed it")
        except BadPack as error:
            if vouch is None or error.code not in ("unsigned", "unknown-signer"):
                raise
            vouch()
            return None

    return judge


def vet_source(source: BinaryIO, name: str, trust: Trust) -> None:
    """Refuse a stream, about to be believed without a signature, that somebody may have written who is not trusted.

    That is a file of another user's, or one that everybody may write, or in a directory that is unsafe; likewise a
    named pipe. One without a name belongs to whoever made it.

    Raises:
        UnsafeDirectoryError: it is one.
    """
    found = os.fstat(source.fileno())
    # A socket, as ssh may give, has all permissions, which mean nothing.
    is_file = stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
    hint = "have it signed"
    if name != "-":
        hint += f", or copy it to a directory of your own if you trust who wrote it: `cp {quoted(name)} …`"
    if not trust.covers(found.st_uid):
        fact = f"belongs to uid {found.st_uid}, not to uid {os.geteuid()}, and is executed"
        raise UnsafeDirectoryError(name, fact, hint)
    if is_file and found.st_mode & stat.S_IWOTH and not trust.world_writable:
        mode = stat.S_IMODE(found.st_mode)
        fact = f"everybody may write it (mode {mode:04o}), and it is executed"
        raise UnsafeDirectoryError(name, fact, hint)
    if is_file and name != "-":
        _vet_place(os.path.abspath(name), trust)


def _vet_place(path: str, trust: Trust) -> None:
    """Refuse an unsafe directory of a file whose owner is trusted.

    Where everybody may make files and nobody may replace another's, as in ``/tmp``, the owner says it all.
    """
    directory = os.path.dirname(path)
    mode = os.stat(directory).st_mode
    if mode & stat.S_ISVTX and mode & stat.S_IWOTH:
        vet_way(path, trust)
    else:
        vet(directory, trust)


def is_own_file(source: BinaryIO) -> bool:
    """Whether a stream comes from a regular file of this very user, and not only of somebody who is trusted."""
    found = os.fstat(source.fileno())
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def bring(
    reader: PackReader,
    root: str,
    trust: Trust,
    *,
    chosen: Callable[[ArchivedEntry], bool],
    is_own: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Unpacked:
    """Take the chosen entries of a pack that was judged into a root, which is made if it is not there.

    ``is_own`` is as `unpack` has it. Of autotuners' results those are taken that were measured on a device on record
    here.

    Raises:
        GpuCacheError: the root is not safe, or there is too little room.
        BadPack: the pack is not what its statement says; what was taken before stays, and is whole.
        OSError: the disk refused.
    """
    used = use_of_pull(time.time())
    made: list[ArchivedEntry] = []
    if not dry_run:
        make_ready(root, trust)
        _note_number(root, reader)
    try:
        return unpack(
            reader,
            root,
            chosen=chosen,
            is_own=is_own,
            dry_run=dry_run,
            fitting=fitting_here(root),
            used=used,
            on_made=made.append,
            on_progress=on_progress,
        )
    finally:  # also of a pack that ends too early
        note_made(root, reader.statement.name, reader.statement.number, made, used)


def _note_number(root: str, reader: PackReader) -> None:
    """Remember the number of a pack that is signed, before its files: whoever cuts them short hides no newer number."""
    statement = reader.statement
    if reader.signer is not None and statement.name:
        with suppress(OSError):  # a full disk: an older pack is then not told from a newer one
            note_number(root, statement.name, statement.number)


def make_ready(root: str, trust: Trust) -> None:
    """Make a root ready for entries that come; the root is made if it is not there.

    Raises:
        GpuCacheError: the root is not safe.
        OSError: the disk refused.
    """
    if not os.path.lexists(root):
        vet(root, trust)
        make_root(root)
    prepare(root, trust)


def fitting_here(root: str) -> Here:
    """What can be used on this node by this Python, and on the devices that the root's record of this host has."""
    return here(_devices(root))


def note_made(
    root: str, name: str, number: int, made: Iterable[ArchivedEntry], used: float
) -> None:
    """Note what a pack has brought, so that `gpucache stats` can tell how much of it is used.

    ``used`` is when what was made counts as last used. Nothing is noted where the disk refuses.
    """
    entries = {}
    for entry in made:
        if entry.kind != "inductor":  # whose files are no entries of the store
            entries[entry.store_key] = PulledEntry(entry.facts.target, entry.facts.triton_version)
    with suppress(OSError):
        note_pulled(root, Pulled(name, number, used, entries))


def _devices(root: str) -> set[str]:
    """The kinds of devices that this host's record has; none without a record."""
    try:
        known = of_this_host(root)
    except RecordError:
        return set()
    return {device.silicon for device in known.present if device.silicon is not None}


def over_limit_bytes(root: str, environ: Mapping[str, str]) -> tuple[int, int] | None:
    """What the store takes and what `GPUCACHE_MAX_SIZE` allows, if that is less: then the next compile evicts."""
    try:
        taken, allowed = total_bytes(root), max_size_bytes(root, environ)
    except OSError:
        return None
    if taken is None or not allowed or taken <= allowed:
        return None
    return taken, allowed
