"""A Redis server as the process of a store asks it by redis-py (`store_process`). The only module that imports that.

An object is one value, under its name after a prefix. A server that removes values when its memory is full removes
these too: a miss.
"""

from __future__ import annotations

import mmap
import os
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

from gpucache.remote.store_messages import MOST_NAME_LETTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpucache.remote.errors import RemoteKind
    from gpucache.remote.store_messages import Listing, Meaning, Message

_SCANNED_AT_ONCE = 250


class _Means(Exception):
    """What an answer means that redis-py raises no error for."""

    def __init__(self, meaning: Literal["not-there", "there-already", "bad-answer"]) -> None:
        super().__init__(meaning)
        self.meaning: RemoteKind | Meaning = meaning


class RedisStore:
    """The objects on a server, and what was begun there: a value that is read, a scan."""

    def __init__(self, service: str, settings: dict[str, str], limit_s: float) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client: Any = redis.Redis(
            host=settings["host"],
            port=int(settings["port"]),
            db=int(settings["database"]),
            username=settings.get("username"),
            password=settings.get("password"),
            socket_timeout=limit_s,
            socket_connect_timeout=limit_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # which Redis 2 to 8, Valkey and their relatives all speak
            ssl=service == "rediss",
            ssl_check_hostname=True,  # which redis-py 5 does not by itself
        )
        # Else each connection begins with `CLIENT SETINFO`, which a proxy may not know, and waits for one answer more.
        told = self._client.connection_pool.connection_kwargs
        for name in {"driver_info", "lib_name", "lib_version"} & told.keys():
            told[name] = None
        self._prefix = f"{settings['prefix']}/".encode()
        self._read = b""
        self._done = 0
        self._pages: Iterator[Listing] = iter(())

    def get(self, name: str, length: int) -> tuple[Message, bytes]:
        """Begin to read an object: the first part."""
        self._read, self._done = self._key(name), 0
        answer, data = self.more(length)
        if not data:  # Redis answers so of a key that is not there; no object is empty
            raise _Means("not-there")
        return answer, data

    def more(self, length: int) -> tuple[Message, bytes]:
        """The next part of the object that is read; nothing at its end."""
        data = self._client.getrange(self._read, self._done, self._done + length - 1)
        if not isinstance(data, bytes) or len(data) > length:
            raise _Means("bad-answer")
        self._done += len(data)
        return {}, data

    def stat(self, name: str) -> tuple[Message, bytes]:
        """Look whether there is an object."""
        if not self._client.strlen(self._key(name)):
            raise _Means("not-there")
        return {}, b""

    def put(self, name: str, fd: int, if_absent: bool) -> tuple[Message, bytes]:
        """Put the content of an open file. None of it is in memory at once: redis-py sends a view as it is."""
        with (
            os.fdopen(fd, "rb"),
            closing(mmap.mmap(fd, 0, access=mmap.ACCESS_READ)) as content,
            memoryview(content) as view,
        ):
            done = self._client.set(self._key(name), view, nx=if_absent)
        if not done:
            raise _Means("there-already" if if_absent else "bad-answer")
        return {}, b""

    def list(self, prefix: str) -> tuple[Message, bytes]:
        """Begin to list what there is below a prefix: the first objects."""
        self._pages = self._scanned(self._key(prefix))
        return self.next()

    def next(self) -> tuple[Message, bytes]:
        """What the next step of the scan has found, which may be nothing; ``more`` is False after the last."""
        page = next(self._pages, None)
        return {"listed": page or [], "more": page is not None}, b""

    def delete(self, name: str) -> tuple[Message, bytes]:
        """Remove an object."""
        self._client.delete(self._key(name))
        return {}, b""

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    def _scanned(self, prefix: bytes) -> Iterator[Listing]:
        seen: set[bytes] = set()
        cursor = 0
        pattern = _GLOB.sub(rb"\\\1", prefix) + b"*"
        while True:
            cursor, keys = self._client.scan(cursor, match=pattern, count=_SCANNED_AT_ONCE)
            new = [
                key for key in dict.fromkeys(keys) if key not in seen
            ]  # a scan may give a key twice
            seen.update(new)
            yield self._listed([key for key in new if key.startswith(prefix)])
            if cursor == 0:
                return

    def _listed(self, keys: Sequence[bytes]) -> Listing:
        """The names of keys and the sizes of their values, without those that are gone meanwhile, or hold no text."""
        named = [key for key in keys if len(key) <= len(self._prefix) + MOST_NAME_LETTERS]
        pipeline = self._client.pipeline(transaction=False)
        for key in named:
            pipeline.strlen(key)
        found: Listing = []
        for key, size in zip(named, pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(size, int) and size > 0:
                name = key.removeprefix(self._prefix).decode("utf-8", "backslashreplace")
                found.append((name, size, None))
        return found


_GLOB = re.compile(rb"([\\*?\[\]^-])")

_BY_CLASS: dict[str, RemoteKind] = {
    "AuthenticationError": "refused",
    "NoPermissionError": "refused",
    "ReadOnlyError": "refused",
    "OutOfMemoryError": "full",
    "BusyLoadingError": "server",
    "MasterDownError": "server",
    "ClusterDownError": "server",
    "AskError": "unsupported",
    "TimeoutError": "timeout",
    "ConnectionError": "unreachable",
}
"""What redis-py's errors mean; by name, since not every redis-py has each. ``AskError``, ``MovedError``: a cluster."""
_BY_WORD: dict[str, RemoteKind] = {
    "NOAUTH": "refused",
    "DENIED": "refused",
    "OOM": "full",
    "MISCONF": "full",
    "BUSY": "server",
}
"""What a server's errors mean by their first words, where redis-py has no class. ``MISCONF``: its disk is full."""


def meaning(error: BaseException) -> RemoteKind | Meaning:
    """The kind of failure, or what an answer means that is none; of what is not known, ``bad-answer``."""
    if isinstance(error, _Means):
        return error.meaning
    for one in type(error).__mro__:  # the nearest first: some are also a `ConnectionError`
        if one.__name__ in _BY_CLASS:
            return _BY_CLASS[one.__name__]
    text = str(error)
    if "DB index is out of range" in text:
        return "misconfigured"
    return _BY_WORD.get(text.partition(" ")[0], "bad-answer")
