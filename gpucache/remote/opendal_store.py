"""A service as the process of a store asks it by opendal (`store_process`). The only module that imports opendal."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any

from gpucache.remote.memory_limit import limit_memory
from gpucache.remote.store_messages import MOST_NAME_LETTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpucache.remote.store_messages import Listing, Message

_COPIES = 4
"""So often opendal may hold what it puts (three times was seen)."""
_ONE_PIECE_BYTES = 32 * 2**20
"""A file that is no longer is put by one request, where a store can take parts."""
_PART_BYTES = 16 * 2**20
_LISTED_AT_ONCE = 256


class OpendalStore:
    """An object store, and what was begun there: a file that is read, a list."""

    def __init__(self, service: str, settings: dict[str, str], limit_s: float) -> None:
        import opendal
        from opendal.layers import TimeoutLayer

        limit = TimeoutLayer(timeout=limit_s, io_timeout=limit_s)
        self._operator: Any = opendal.Operator(service, **settings).layer(limit)
        self._file: Any = None
        self._listed: Iterator[Any] = iter(())

    def get(self, name: str, length: int) -> tuple[Message, bytes]:
        """Begin to read an object: the first part."""
        self._file = self._operator.open(name, "rb")
        return self.more(length)

    def more(self, length: int) -> tuple[Message, bytes]:
        """The next part of the object that is read; nothing at its end."""
        return {}, bytes(self._file.read(length))

    def stat(self, name: str) -> tuple[Message, bytes]:
        """Look whether there is an object."""
        self._operator.stat(name)
        return {}, b""

    def put(self, name: str, fd: int, if_absent: bool) -> tuple[Message, bytes]:
        """Put the content of an open file, by one request or in parts."""
        options: dict[str, Any] = {"if_not_exists": True} if if_absent else {}
        with os.fdopen(fd, "rb") as source:
            size = os.fstat(fd).st_size
            in_parts = size > _ONE_PIECE_BYTES and self._operator.capability().write_can_multi
            limit_memory(_COPIES * (_PART_BYTES if in_parts else size))
            if not in_parts:
                self._operator.write(name, source.read(), **options)
                return {}, b""
            file = self._operator.open(name, "wb", chunk=_PART_BYTES, **options)
            while part := source.read(_PART_BYTES):
                file.write(part)
            file.close()
        return {}, b""

    def list(self, prefix: str) -> tuple[Message, bytes]:
        """Begin to list what there is below a prefix: the first objects."""
        self._listed = iter(self._operator.list(prefix, recursive=True))
        return self.next()

    def next(self) -> tuple[Message, bytes]:
        """The next objects of the list; nothing at its end."""
        entries = list(islice(self._listed, _LISTED_AT_ONCE))
        found: Listing = []
        for entry in entries:
            changed = entry.metadata.last_modified
            time_s = changed.timestamp() if changed else None
            if not entry.path.endswith("/") and len(entry.path) <= MOST_NAME_LETTERS:
                found.append((entry.path, entry.metadata.content_length, time_s))
        return {"listed": found, "more": bool(entries)}, b""

    def delete(self, name: str) -> tuple[Message, bytes]:
        """Remove an object."""
        self._operator.delete(name)
        return {}, b""
