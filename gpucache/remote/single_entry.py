"""One entry as an object of a remote: a pack of that entry alone, whose name is empty."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from gpucache.archive.errors import BadPack
from gpucache.archive.read import Limits
from gpucache.archive.statement import MOST_LINE_BYTES, Statement
from gpucache.archive.write import write_pack
from gpucache.disk.files import remove_tree
from gpucache.remote.object_names import entry_object

if TYPE_CHECKING:
    from gpucache.archive.collect import Collected
    from gpucache.archive.read import PackReader
    from gpucache.archive.signature import SigningKey
    from gpucache.archive.statement import ArchivedEntry, ArchivedFile
    from gpucache.disk.staging import Staging
    from gpucache.remote.remote import Remote

ENTRY_BYTES = 64 * 2**20
"""No object of a single entry is longer."""
LIMITS = Limits(statement_bytes=2 * MOST_LINE_BYTES, total_bytes=2**30)
"""What is read of such an object: a statement with one entry's line, and files of a GiB, however well compressed."""


def single_entry(reader: PackReader, triton_version: str, store_key: str) -> ArchivedEntry:
    """The entry of an object that is to have this key and version: a valid one of another key is no answer.

    Raises:
        BadPack: the object has another entry, or several.
    """
    entries = reader.statement.entries
    if len(entries) != 1 or reader.statement.name:
        raise BadPack("another-name", "it is no pack of a single entry", reader.source_name)
    (entry,) = entries
    if entry.store_key != store_key:
        raise BadPack("another-name", "it is the entry of another key", reader.source_name)
    if entry.facts.triton_version != triton_version:
        raise BadPack("another-name", "it is the entry of another Triton", reader.source_name)
    return entry


def put_entry(
    remote: Remote, collected: Collected, signing: SigningKey | None, staging: Staging
) -> int | None:
    """Put a collected entry at its name; how many bytes were sent, None where the remote has it already.

    An entry that no single object can be, as one that does not say its Triton or is too long, is refused by
    ``ValueError``. Each byte is compared with the digest that was published.

    Raises:
        RemoteError: the remote failed.
        BadPack: a file is no more what it was when the entry was collected.
        OSError: the disk refused.
        ValueError: the entry can be no object.
    """
    entry = collected.entry
    name = entry_object(entry.facts.triton_version or "", entry.store_key)
    directory = staging.directory()
    try:
        path = f"{directory}/pack"
        with open(path, "xb") as file:
            _write(file, collected, signing)
        size_bytes = os.path.getsize(path)
        if size_bytes > ENTRY_BYTES:
            raise ValueError(f"an entry of {ENTRY_BYTES >> 20} MiB at most")
        is_new = remote.put_new(name, path)
    finally:
        remove_tree(directory)
    return size_bytes if is_new else None


def _write(file: BinaryIO, collected: Collected, signing: SigningKey | None) -> None:
    def opened(_: ArchivedEntry, member: ArchivedFile) -> BinaryIO:
        return collected.opened(member)

    write_pack(file, Statement("", 0, (collected.entry,)), signing, opened)
