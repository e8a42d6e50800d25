"""One zstd frame, written and read in pieces. The only module that imports zstandard.

Whoever reads is never led to take more memory than the window and a few pieces: zstd's blocks of 4 bytes can stand for
128 KiB, so that a small file may be terabytes.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from gpucache.archive.errors import BadPack
from gpucache.errors import NotInstalledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import BinaryIO, Protocol

    class Readable(Protocol):
        """What a pack is read from: a file, a pipe, or whatever gives bytes from the beginning to the end, once."""

        def read(self, size: int, /) -> bytes | None:
            """The next bytes, at least one and at most so many; none at the end."""


LEVEL = 9
"""Of 1 to 22. Of a diverse sample 9 makes a sixteenth, at 500 MB/s; 19 a twentieth, at a twentieth of that speed."""
WINDOW_LOG = 23
WINDOW_BYTES = 2**WINDOW_LOG
"""How far back a frame may refer: what a reader has to keep."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_READ_BYTES = 2**16
_FED_BYTES = 512
"""How much is decompressed at once. It can become 16 MiB, as a block of 4 bytes can stand for 128 KiB."""


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise NotInstalledError("zstandard") from None
    found: ModuleType = zstandard
    return found


@contextmanager
def compressed(out: BinaryIO, level: int = LEVEL) -> Iterator[BinaryIO]:
    """A stream whose bytes go compressed to ``out``, as one frame that is ended with the block; ``out`` stays open.

    For equal bytes equal bytes, with one version of zstandard and one level.

    Raises:
        NotInstalledError: zstandard is missing.
        OSError: ``out`` cannot be written.
    """
    zstandard = _zstandard()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, write_checksum=True, write_content_size=False
    )
    if parameters.window_log > WINDOW_LOG:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, write_checksum=True, write_content_size=False, window_log=WINDOW_LOG
        )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with compressor.stream_writer(out, closefd=False) as stream:
        yield stream


class Decompressed:
    """The content of one zstd frame, in pieces, of a stream that may be a pipe."""

    def __init__(self, source: Readable) -> None:
        """Reads nothing yet.

        Raises:
            NotInstalledError: zstandard is missing.
        """
        self._zstandard = _zstandard()
        decompressor = self._zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._frame = decompressor.decompressobj()
        # Of a buffered pipe this gives what is there, and does not wait for more.
        self._read = getattr(source, "read1", source.read)
        self._raw = memoryview(b"")
        self._ready = memoryview(b"")
        self._begun = False

    def piece(self, most_bytes: int) -> memoryview:
        """The next bytes, at most so many; none where the frame ends.

        Raises:
            BadPack: the stream is no frame, needs a larger window, is damaged, or ends in the middle.
            OSError: the source cannot be read.
        """
        while not self._ready and not self._frame.eof:
            self._ready = memoryview(self._more())
        piece = self._ready[:most_bytes]
        self._ready = self._ready[most_bytes:]
        return piece

    def exactly(self, size_bytes: int) -> bytes:
        """So many bytes; fewer where the frame ends.

        Raises:
            BadPack, OSError: as `piece`.
        """
        parts = []
        missing = size_bytes
        while missing and (part := self.piece(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        """Check that the frame ends here, and the source with the frame.

        Raises:
            BadPack: something follows.
            OSError: the source cannot be read.
        """
        if self.piece(1):
            raise BadPack("trailing-bytes", "bytes follow the end of the archive")
        rest = bytes(self._frame.unused_data) + bytes(self._raw)
        while len(rest) < len(_MAGIC) and (more := self._from_source()):
            rest += more
        if rest.startswith(_MAGIC):
            raise BadPack("second-frame", "a second frame of zstd follows the first")
        if rest:
            raise BadPack("trailing-bytes", "bytes follow the end of the frame")

    def _more(self) -> bytes:
        """What the next few bytes of the source decompress to, which may be nothing."""
        if not self._begun:
            self._raw = memoryview(self._beginning())
            self._begun = True
        if not self._raw:
            self._raw = memoryview(self._from_source())
        if not self._raw:
            raise BadPack("truncated", "it ends in the middle")
        fed = self._raw[:_FED_BYTES]
        self._raw = self._raw[_FED_BYTES:]
        try:
            content: bytes = self._frame.decompress(fed)
        except self._zstandard.ZstdError as error:
            if "memory" in str(error):  # "Frame requires too much memory for decoding"
                fact = f"it needs a window of more than {WINDOW_BYTES >> 20} MiB"
                raise BadPack("window", fact) from None
            raise BadPack("corrupt", "its compressed bytes are damaged") from None
        return content

    def _beginning(self) -> bytes:
        """The first bytes, at least four, which tell a frame from everything else, such as a frame to be skipped."""
        head = b""
        while len(head) < len(_MAGIC) and (more := self._from_source()):
            head += more
        if not head.startswith(_MAGIC):
            raise BadPack("not-zstd", "it does not begin as zstd does")
        return head

    def _from_source(self) -> bytes:
        data: bytes | None = self._read(_READ_BYTES)
        if data is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return data
