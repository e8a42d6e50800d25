"""`Source`: what comes of a remote, counted, and told to those who wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from gpucache.remote.pulls import Pull


class Source:
    """What comes of a remote, read once from the beginning; each part of it is a sign of life of the pull."""

    def __init__(self, file: BinaryIO, pull: Pull | None) -> None:
        self.received_bytes = 0
        # Gives what has come, and does not wait until so much has.
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self._pull = pull

    def read(self, size: int = -1) -> bytes:
        """As `BinaryIO.read`, but for that it may give less than was asked for."""
        data = self._read(size)
        self.received_bytes += len(data)
        if self._pull is not None:
            self._pull.came(len(data))
        return data
