"""The process that asks an object store for another process. The only module that imports opendal.

opendal is kept out of every other process (all measured, 0.47.12): a child that is forked after a request hangs for
ever; the body of an error, or a list, is read whole, and shown whole while no other thread runs, so that an answer of
400 MB to a limit of 5 s took 34 s and 4 GB; its iterator of a list panics in another thread, and what a panic says goes
to stderr; after a call by asyncio four of ten processes aborted at their ends. This process may use so much memory, is
killed when the time is over, and is replaced by the next.

It has no stdio, and ends with its channel.
"""

from __future__ import annotations

import base64
import os
import re
import resource
import select
import socket
import sys
import threading
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from gpucache.disk.spawning import offer_to_the_killer
from gpucache.escapes import printable, without
from gpucache.remote.opendal_errors import meaning
from gpucache.remote.store_messages import Ended, Receiver, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpucache.remote.store_messages import Message

_IDLE_S = 120.0
"""Without a question for so long this process ends; the next question starts another."""
_MEMORY_BYTES = 128 * 2**20
"""How much more than at its start this process may take, beside what it is to put."""
_COPIES = 4
"""So often opendal may hold what it puts (three times was seen)."""
_ONE_PIECE_BYTES = 32 * 2**20
"""A file that is no longer is put by one request, where a store can take parts."""
_PART_BYTES = 16 * 2**20
_LISTED_AT_ONCE = 256
_SAID_LETTERS, _LOOKED_AT_LETTERS = 200, 8192
_SECRETS = (
    "secret_access_key",
    "session_token",
    "account_key",
    "sas_token",
    "password",
    "token",
)
"""The settings of services that nobody is to see."""


class Store:
    """An object store, and what was begun there: a file that is read, a list."""

    def __init__(self, name: str, settings: dict[str, str], limit_s: float) -> None:
        import opendal
        from opendal.layers import TimeoutLayer

        limit = TimeoutLayer(timeout=limit_s, io_timeout=limit_s)
        self._operator: Any = opendal.Operator(name, **settings).layer(limit)
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
        found = []
        for entry in entries:
            changed = entry.metadata.last_modified
            time_s = changed.timestamp() if changed else None
            if not entry.path.endswith("/"):
                found.append([entry.path, entry.metadata.content_length, time_s])
        return {"listed": found, "more": bool(entries)}, b""

    def delete(self, name: str) -> tuple[Message, bytes]:
        """Remove an object."""
        self._operator.delete(name)
        return {}, b""


_at_start = 0


def limit_memory(more_bytes: int = 0) -> None:
    """Let this process take no more memory than such requests need: beyond that opendal aborts it."""
    global _at_start
    with suppress(OSError, ValueError):
        if not _at_start:
            _at_start = _private_bytes()
        soft = _at_start + _MEMORY_BYTES + more_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """What counts to the limit: the private memory that this process can write (`getrlimit(2)`)."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"^VmData:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise ValueError("no VmData")
    return 1024 * int(found.group(1))


def serve(channel: socket.socket) -> None:
    """Answer one question after the other, until the channel ends or nobody asks any more."""
    receiver = Receiver(channel)
    channel.settimeout(_IDLE_S)
    store: Store | None = None
    secrets: list[str] = []
    with suppress(Ended, TimeoutError):
        while True:
            question, _ = receiver.take()
            act = question.pop("do")
            del question["bytes"]
            try:
                if act == "open":
                    secrets = _secrets(question["settings"])
                    store = Store(**question)
                    answer, data = {}, b""
                else:
                    limit_memory()
                    if receiver.files:
                        question["fd"] = receiver.files.pop()
                    answer, data = getattr(store, act)(**question)
            except BaseException as error:  # opendal's panics are no `Exception`
                answer, data = _failure(error, secrets), b""
            send(channel, answer, data)
            answer, data = {}, b""


_QUERY = re.compile(r"(\w+://[^\s?,]*\?)[^\s,]*")


def _secrets(settings: dict[str, str]) -> list[str]:
    """What must not be told of settings, in each form in which a server that got it could send it back."""
    found = [settings[name] for name in _SECRETS if name in settings]
    found += [value for _, value in parse_qsl(settings.get("sas_token", ""))]
    user = f"{settings.get('username', '')}:{settings.get('password', '')}"
    if "password" in settings:
        found.append(base64.b64encode(user.encode()).decode())
    return sorted(found, key=len, reverse=True)  # one may be a part of another


def _failure(error: BaseException, secrets: list[str]) -> Message:
    text = str(error)
    # A signature may stand in the query of a URL.
    shown = _QUERY.sub(r"\1***", text[:_LOOKED_AT_LETTERS])
    said = printable(without(shown, secrets))[:_SAID_LETTERS]
    # That it is there and cannot be imported, as one that was built for another libc, is as if it were not.
    failed = "not-installed" if isinstance(error, ImportError) else meaning(text)
    return {"failed": failed, "said": said}


def _end_with(channel: socket.socket) -> None:
    """End this process when the one that asks is gone, whatever is being done."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve the channel whose descriptor is the first argument."""
    with suppress(OSError):
        offer_to_the_killer()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the credentials
    channel = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with, args=[channel], daemon=True).start()
    serve(channel)
    os._exit(0)  # no thread of opendal's meets an interpreter that ends
