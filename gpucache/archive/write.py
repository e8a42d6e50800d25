"""Write a pack: the statement, who vouches for it, and the files of its entries, as one compressed stream."""

from __future__ import annotations

import hashlib

from gpucache.archive import compression, ustar
from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.members import SIGNATURES, STATEMENT, member_name
from gpucache.archive.parsing import parsed
from gpucache.archive.signature import encoded_signatures
from gpucache.archive.statement import SIGNED_BEFORE, encoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from gpucache.archive.signature import SigningKey
    from gpucache.archive.statement import ArchivedEntry, ArchivedFile, Statement

_PART_BYTES = 2**20


def write_pack(
    out: BinaryIO,
    statement: Statement,
    signing: SigningKey | None,
    opened: Callable[[ArchivedEntry, ArchivedFile], BinaryIO],
    level: int = compression.LEVEL,
) -> None:
    """Write a pack to a stream, which may be a pipe and stays open.

    Equal statements and files give equal bytes, with one key, level and version of zstandard. What was written when an
    error is raised is no pack.

    Args:
        out: where to.
        statement: what the pack says of itself.
        signing: the key that signs the statement; None for a pack that nobody vouches for.
        opened: opens a file of an entry; each is closed once its bytes are written.
        level: zstd's, 1 to 22.

    Raises:
        BadPack: no reader would take the statement; or a file is not what the statement says (``file-changed``).
        OSError: a file cannot be read, or ``out`` not be written.
        NotInstalledError: the extra ``remote`` is missing.
    """
    said = encoded(statement)
    parsed(said)  # what nobody could read is not written
    with compression.compressed(out, level) as stream:
        _write_small(stream, STATEMENT, said)
        if signing is not None:
            signature = signing.sign(SIGNED_BEFORE + said)
            _write_small(stream, SIGNATURES, encoded_signatures([signature]))
        for entry in statement.entries:
            for file in entry.members:
                with opened(entry, file) as source:
                    _write_file(stream, member_name(entry, file), file, source)
        stream.write(ustar.END)


def _write_small(stream: BinaryIO, name: str, content: bytes) -> None:
    stream.write(ustar.header(name, len(content)))
    stream.write(content)
    stream.write(bytes(ustar.padding(len(content))))


def _write_file(stream: BinaryIO, name: str, file: ArchivedFile, source: BinaryIO) -> None:
    stream.write(ustar.header(name, file.size_bytes))
    digest = hashlib.sha256()
    missing = file.size_bytes
    while missing and (part := source.read(min(missing, _PART_BYTES))):
        digest.update(part)
        stream.write(part)
        missing -= len(part)
    if missing or source.read(1) or digest.hexdigest() != file.sha256:
        raise BadPack("file-changed", f"{quoted(name)} is not what it was when the pack was begun")
    stream.write(bytes(ustar.padding(file.size_bytes)))
