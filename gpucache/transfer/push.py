"""Put a pack, or entries one by one, to a remote, where other machines take them from."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpucache.archive.errors import BadPack
from gpucache.archive.read import PackReader
from gpucache.disk.staging import staging_below
from gpucache.errors import GpuCacheError
from gpucache.layout import paths
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.object_names import pack_object
from gpucache.remote.single_entry import put_entry
from gpucache.store.stats import REMOTE as NO_DEVICE
from gpucache.store.stats import Stats

if TYPE_CHECKING:
    from typing import Literal

    from gpucache.archive.collect import Collected
    from gpucache.archive.read import Judge
    from gpucache.archive.signature import Signature, SigningKey
    from gpucache.archive.statement import ArchivedEntry, Statement
    from gpucache.remote.remote import Remote

    Did = Literal["put", "replaced", "there"]

Progress = Callable[[int, int], object]
"""Is told how much is done, and how much there is."""
_ANY_BYTES = 2**50


class PackThere(GpuCacheError):
    """The remote has another pack of this name, and nobody has asked to replace it."""

    error_kind = "pack-there"

    def __init__(self, remote: str, name: str, number: int, there: int | None) -> None:
        what = f"another pack {name}" if there is None else f"the pack {name} of number {there}"
        super().__init__(
            f"{remote} has {what}, and this is number {number}",
            "say --replace, or pack under another name (`gpucache pack --name`)",
            remote,
            name,
            number,
            there,
        )
        self.remote = remote
        self.name = name
        self.number = number
        self.there = there
        """The number of the one that is there; None where that is none that anybody here believes."""


class PushedPack(NamedTuple):
    """What became of a pack."""

    statement: Statement
    signer: str | None
    did: Did
    """``there``: the remote had this very pack. With ``dry_run`` what would have been done."""
    replaced: int | None = None
    """The number of a pack that was there before, if anybody here believes that one."""

    @property
    def is_older(self) -> bool:
        """Whether its number is lower than the one before: nodes that have seen that are told of an old pack."""
        return self.replaced is not None and self.statement.number < self.replaced


def signed_by(message: bytes, signatures: Sequence[Signature]) -> str:
    """Judge a pack of one's own before it is pushed, whose signature others are to believe: there must be one.

    Raises:
        BadPack: nobody has signed it.
    """
    if not signatures:
        raise BadPack(
            "unsigned", "nobody has signed it, so that no reader of a remote would take it"
        )
    return signatures[0].name


def push_pack(
    remote: Remote,
    path: str,
    judge: Judge,
    *,
    replace: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> PushedPack:
    """Put the pack of a file at its name, after each of its bytes was read and found to be what it says.

    ``judge`` says whether readers will believe the pack; ``on_progress`` is told bytes. Readers of the remote find the
    old object or the whole new one.

    Raises:
        BadPack: the file is no pack, or one that readers would refuse.
        PackThere: another pack of this name is there, and ``replace`` does not say to replace that.
        RemoteError: the remote failed.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file, PackReader(file, judge, source_name=path) as reader:
        statement, signer = reader.statement, reader.signer
        if not statement.name:
            fact = "it is a single entry as a remote has it, and has no name to lie under"
            raise BadPack("another-name", fact, path)
        object_name = pack_object(statement.name)
        _read_whole(reader, on_progress)
    there = _there(remote, object_name, judge)
    if there is not None and there.statement == statement:
        return PushedPack(statement, signer, "there")
    if there is not None and not replace:
        raise PackThere(remote.shown, statement.name, statement.number, there.number)
    did: Did = "put" if there is None else "replaced"
    if not dry_run and not remote.put_new(object_name, path, replace):
        raise PackThere(remote.shown, statement.name, statement.number, None)  # another was faster
    return PushedPack(statement, signer, did, None if there is None else there.number)


class _There(NamedTuple):
    """What lies at a name."""

    statement: Statement | None
    """None where it is no pack that the judge believes."""

    @property
    def number(self) -> int | None:
        return None if self.statement is None else self.statement.number


def _there(remote: Remote, object_name: str, judge: Judge) -> _There | None:
    """The statement of what the remote has at a name; None where it has nothing there."""
    try:
        with (
            remote.get(object_name, _ANY_BYTES) as file,
            PackReader(file, judge, source_name=f"{remote.shown} {object_name}") as reader,
        ):
            return _There(reader.statement)
    except NotThere:
        return None
    except BadPack:
        return _There(None)


def _read_whole(reader: PackReader, on_progress: Progress | None) -> None:
    done, total = 0, reader.statement.size_bytes
    for _, file, pieces in reader.files():
        for _ in pieces:
            pass
        done += file.size_bytes
        if on_progress is not None:
            on_progress(done, total)


# ---- single entries


class NotPushed(NamedTuple):
    """An entry that can be no object of its own."""

    entry: ArchivedEntry
    fact: str


class PushedEntries(NamedTuple):
    """What became of entries."""

    put: tuple[ArchivedEntry, ...]
    there: tuple[ArchivedEntry, ...]
    """The remote had these."""
    left_out: tuple[NotPushed, ...]
    sent_bytes: int


def push_entries(
    remote: Remote,
    root: str,
    collected: Sequence[Collected],
    signing: SigningKey | None,
    on_progress: Progress | None = None,
) -> PushedEntries:
    """Put each entry at its own name; one that is there stays, since a key has one content. Progress is told entries.

    In a root that is read-only, or stock Triton's, nothing is made or counted.

    Raises:
        RemoteError: the remote failed; what was put before stays, and the next push passes it over.
        OSError: the disk refused.
    """
    put: list[ArchivedEntry] = []
    there: list[ArchivedEntry] = []
    left_out: list[NotPushed] = []
    sent_bytes = 0
    takes_more = os.access(paths.ours(root), os.W_OK)
    staging = staging_below(paths.ours(root, "tmp") if takes_more else tempfile.gettempdir())
    stats = Stats(paths.ours(root, "stats") if takes_more else None, NO_DEVICE)
    for number, one in enumerate(collected):
        if on_progress is not None:
            on_progress(number, len(collected))
        fact = unfit(one.entry)
        if fact is not None:
            left_out.append(NotPushed(one.entry, fact))
            continue
        began = time.monotonic()
        try:
            sent = put_entry(remote, one, signing, staging)
        except (ValueError, BadPack) as error:
            left_out.append(NotPushed(one.entry, str(error)))
            continue
        except RemoteError:
            stats.add("push_errors", now=True)
            raise
        if sent is None:
            there.append(one.entry)
            continue
        sent_bytes += sent
        put.append(one.entry)
        stats.add("pushed")
        stats.add("pushed_bytes", sent)
        stats.add("push_s", time.monotonic() - began)
    stats.flush()
    return PushedEntries(tuple(put), tuple(there), tuple(left_out), sent_bytes)


def unfit(entry: ArchivedEntry) -> str | None:
    """Why an entry can be no object of its own, which is named by its Triton and its key; None if it can."""
    if entry.kind != "kernel":
        return f"a {entry.kind} goes in a pack only"
    if entry.facts.triton_version is None:
        return "it does not say its Triton, and nobody could ask for it"
    return None
