"""`Source`: what comes of a remote, counted, and told to those who wait for it; and how long a whole pack may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from gpucache.remote.errors import RemoteError
from gpucache.remote.remote import Patience

if TYPE_CHECKING:
    from gpucache.remote.pulls import Pull
    from gpucache.remote.remote import Remote

PATIENCE = Patience(in_all_s=86_400.0, silent_s=30.0)
"""Of a request for a pack, which may have gigabytes. `Source` ends one that only drips."""
_LEAST_BYTES = 32 * 1024
_LEAST_S = 60.0


class Source:
    """An object as it comes, read once from the beginning; each part of it is a sign of life of the pull."""

    def __init__(self, file: BinaryIO, remote: Remote, name: str, pull: Pull | None = None) -> None:
        """``remote`` and ``name`` say where the object lies, for errors."""
        self.received_bytes = 0
        # Gives what has come, and does not wait until so much has.
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self._remote, self._name = remote, name
        self._pull = pull
        self._waited_s, self._bytes = 0.0, 0

    def read(self, size: int = -1) -> bytes:
        """As `BinaryIO.read`, but for that it may give less than was asked for.

        Raises:
            RemoteError: ``timeout`` where less than 32 KiB came in a minute of waiting; and what the file raises.
        """
        began = time.monotonic()
        data = self._read(size)
        self._waited_s += time.monotonic() - began  # and not what a slow disk takes
        self.received_bytes += len(data)
        if self._pull is not None:
            self._pull.came(len(data))
        if data:
            self._refuse_drips(len(data))
        return data

    def _refuse_drips(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes >= _LEAST_BYTES:
            self._waited_s, self._bytes = 0.0, 0
        elif self._waited_s > _LEAST_S:
            detail = f"less than {_LEAST_BYTES >> 10} KiB came in {_LEAST_S:g} s"
            raise RemoteError(self._remote.shown, "timeout", "get", self._name, detail)
