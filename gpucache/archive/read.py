"""Read a pack in one pass, also from a pipe, believing nothing: neither sizes, nor names, nor that an end comes."""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from gpucache.archive import statement as statements
from gpucache.archive import ustar
from gpucache.archive.compression import Decompressed
from gpucache.archive.errors import BadPack, quoted
from gpucache.archive.members import SIGNATURES, STATEMENT, member_name
from gpucache.archive.parsing import parsed
from gpucache.archive.signature import MOST_SIGNATURES_BYTES, parsed_signatures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from gpucache.archive.compression import Readable
    from gpucache.archive.signature import Signature
    from gpucache.archive.statement import ArchivedEntry, ArchivedFile, Statement

    Judge = Callable[[bytes, Sequence[Signature]], str | None]
    """From the bytes that are signed and their signatures to the signer's name; None where unsigned packs are accepted.

    Raises `BadPack` for what is not accepted. The bytes have not been parsed yet.
    """

_PIECE_BYTES = 2**18


class Limits(NamedTuple):
    """How much of a pack is read."""

    statement_bytes: int = statements.MOST_BYTES
    total_bytes: int | None = None
    """Of all files together; None for as many as the statement says."""


class PackReader:
    """One pass over a pack, whose source may be a pipe and stays open.

    The statement is read and judged by the constructor; `files` reads the rest. Memory stays below 200 MB, whatever
    comes; how long a source may let wait for its next bytes is the source's to bound.
    """

    def __init__(
        self,
        source: Readable,
        judge: Judge,
        *,
        source_name: str,
        limits: Limits = Limits(),  # noqa: B008  # immutable
    ) -> None:
        """Read the statement and its signatures, have the bytes judged, and only then parse them.

        Raises:
            BadPack: it is no pack, the judge does not accept it, or the statement makes no sense.
            OSError: the source cannot be read.
            NotInstalledError: the extra ``remote`` is missing.
        """
        self.source_name = source_name
        """What the pack is called in errors: a path or a URL."""
        self._begun = False
        self._stream: Decompressed | None = Decompressed(source)
        with self._named():
            message = self._statement_bytes(limits)
            self._next = self._header()
            signatures = self._signatures()
            self.signer = judge(message, signatures)
            """Who vouches for the statement; None for a pack that is accepted unsigned."""
            begin = len(statements.SIGNED_BEFORE)
            self.statement: Statement = parsed(message, begin)
            """What the pack says of itself."""
            size_bytes = self.statement.size_bytes
            if limits.total_bytes is not None and size_bytes > limits.total_bytes:
                fact = f"its files have {size_bytes} bytes, and {limits.total_bytes} are the most"
                raise BadPack("too-large", fact)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream = None  # with its window; nothing can be read any more

    def files(self) -> Iterator[tuple[ArchivedEntry, ArchivedFile, Iterator[bytes]]]:
        """Each file with its entry and its content in pieces of 256 KiB at most, in the order of the statement; once.

        A file is sound when its pieces have come to their end: only then its digest is known. Whatever of it was not
        asked for is read, and checked, before the next one. After the last one the pack has to end.

        Raises:
            BadPack: the pack is not what its statement says; also while pieces are read.
            OSError: the source cannot be read.
        """
        if self._begun:
            raise ValueError("a pack is read once")
        self._begun = True
        count = 0
        for entry, file, name in self._expected():
            with self._named():
                self._expect(count, name, file.size_bytes)
            pieces = self._pieces(file, name)
            yield entry, file, pieces
            for _ in pieces:
                pass
            count += 1
        with self._named():
            self._end(count)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Give a flaw the name of the source."""
        try:
            yield
        except BadPack as error:
            error.name_source(self.source_name)
            raise

    @property
    def _bytes(self) -> Decompressed:
        if self._stream is None:
            raise ValueError("the pack is closed")
        return self._stream

    # ---- the statement

    def _statement_bytes(self, limits: Limits) -> bytes:
        """The bytes that are signed: what stands before each statement, and the first member."""
        member = ustar.parsed(self._block())
        if member.name != STATEMENT:
            fact = f"its first member is {quoted(member.name)}, and no {STATEMENT}"
            raise BadPack("no-statement", fact)
        if member.size_bytes > limits.statement_bytes:
            fact = f"its statement has {member.size_bytes} bytes, and {limits.statement_bytes} are the most"
            raise BadPack("too-long", fact)
        content = io.BytesIO()  # whose value is not copied: that would be 64 MiB
        content.write(statements.SIGNED_BEFORE)
        for piece in self._content(member.size_bytes):
            content.write(piece)
        return content.getvalue()

    def _signatures(self) -> tuple[Signature, ...]:
        if self._next is None:
            return ()
        member = ustar.parsed(self._next)
        if member.name != SIGNATURES:
            return ()
        if member.size_bytes > MOST_SIGNATURES_BYTES:
            raise BadPack("signatures", f"its signatures have {member.size_bytes} bytes")
        data = b"".join(self._content(member.size_bytes))
        self._next = self._header()
        return parsed_signatures(data)

    # ---- members

    def _block(self) -> bytes:
        block = self._bytes.exactly(ustar.BLOCK_BYTES)
        if len(block) < ustar.BLOCK_BYTES:
            raise BadPack("end", "the archive has no end")
        return block

    def _header(self) -> bytes | None:
        """The next header, which nobody has looked at; None for the end of the archive, which is two empty blocks."""
        block = self._block()
        if any(block):
            return block
        if any(self._block()):
            raise BadPack("end", "an empty block stands where a member is to begin")
        return None

    def _expect(self, number: int, name: str, size_bytes: int) -> None:
        """Check that the next member is the one that the statement has at this place, counted from 0."""
        if self._next is None:
            raise BadPack("missing-member", f"{quoted(name)} is missing")
        if self._next == ustar.header(name, size_bytes):
            return
        found = ustar.parsed(self._next)
        if found.name != name:
            self._refuse_repeated(found.name, number)
            raise BadPack(
                "member-name", f"where {quoted(name)} is to be there is {quoted(found.name)}"
            )
        fact = f"{quoted(name)} has {found.size_bytes} bytes, and {size_bytes} in the statement"
        raise BadPack("member-size", fact)

    def _refuse_repeated(self, name: str, number: int) -> None:
        """Refuse a member that is among the two first, or among so many of the statement's."""
        names = (name for _, _, name in self._expected())
        if name in (STATEMENT, SIGNATURES) or name in islice(names, number):
            raise BadPack("repeated-member", f"{quoted(name)} is there twice")

    def _expected(self) -> Iterator[tuple[ArchivedEntry, ArchivedFile, str]]:
        """Each file of the statement with its entry and the name of its member."""
        for entry in self.statement.entries:
            for file in entry.members:
                yield entry, file, member_name(entry, file)

    def _pieces(self, file: ArchivedFile, name: str) -> Iterator[bytes]:
        with self._named():
            digest = hashlib.sha256()
            for piece in self._content(file.size_bytes):
                digest.update(piece)
                yield piece
            if digest.hexdigest() != file.sha256:
                raise BadPack(
                    "file-digest", f"{quoted(name)} has another digest than in the statement"
                )
            self._next = self._header()

    def _content(self, size_bytes: int) -> Iterator[bytes]:
        """The content of a member in pieces, and the zeros after it, which are checked."""
        missing = size_bytes
        while missing:
            piece = self._bytes.exactly(min(missing, _PIECE_BYTES))
            if not piece:
                raise BadPack("end", "the archive ends in the middle of a member")
            missing -= len(piece)
            yield piece
        zeros = self._bytes.exactly(ustar.padding(size_bytes))
        if len(zeros) < ustar.padding(size_bytes) or any(zeros):
            raise BadPack("padding", "what fills a member's last block is not zeros")

    def _end(self, count: int) -> None:
        if self._next is not None:
            name = ustar.parsed(self._next).name
            self._refuse_repeated(name, count)
            raise BadPack("trailing-member", f"{quoted(name)} is not in the statement")
        self._bytes.end()
