"""`BoundedReader`: what a remote gives, read in parts, of which no more is taken than was agreed, and no longer."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from gpucache.remote.errors import RemoteKind
    from gpucache.remote.remote import Patience

    Refusal = Callable[[RemoteKind], Exception]
    """What is raised for a kind of failure."""

PART_BYTES = 128 * 1024
"""How much is asked of a remote at a time."""

_SLOWEST_BYTES_S = 256 * 1024
"""What is sent by less in a second is as good as not sent."""


class Deadline:
    """When a request must be over, by this process's own clock, which nobody can set."""

    def __init__(self, patience: Patience) -> None:
        self._ends = time.monotonic() + patience.in_all_s
        self._silent_s = patience.silent_s

    def left_s(self, sent_bytes: int = 0) -> float:
        """The seconds that may still pass before the next byte: none once the whole time is over.

        Nothing comes back while so many bytes are sent: they may take as long as they would by a slow line.
        """
        whole = self._ends - time.monotonic()
        silent = self._silent_s + sent_bytes / _SLOWEST_BYTES_S
        return max(0.0, min(whole, silent))

    @property
    def is_over(self) -> bool:
        """Whether the whole time is over, however many bytes still come."""
        return time.monotonic() >= self._ends


class BoundedReader(io.RawIOBase):
    """An object that comes from a remote, as a file to be read once; use it by `as_file`.

    ``more`` gives the next part, of at most so many bytes, and nothing at the end. More bytes than ``limit_bytes``, and
    a deadline that is over, raise what ``refusal`` makes of their kind.
    """

    def __init__(
        self,
        more: Callable[[int], bytes],
        limit_bytes: int,
        deadline: Deadline,
        refusal: Refusal,
    ) -> None:
        self._more = more
        self._left = limit_bytes
        self._deadline = deadline
        self._refusal = refusal

    def readable(self) -> bool:
        """Whether this file can be read, which it can."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the beginning of a buffer; returns how many bytes that were, 0 at the end."""
        if self._deadline.is_over:
            raise self._refusal("timeout")
        part = self._more(min(len(buffer), PART_BYTES))
        self._left -= len(part)
        if self._left < 0:
            raise self._refusal("too-large")
        buffer[: len(part)] = part
        return len(part)


def as_file(reader: BoundedReader) -> BinaryIO:
    """The reader as a file whose reads are only short at the end."""
    return cast("BinaryIO", io.BufferedReader(reader, PART_BYTES))
