"""`Connection`: one connection to a Redis server, on which nothing is longer, later or deeper than was agreed.

The protocol is RESP 2 (redis.io/docs/latest/develop/reference/protocol-spec), which Redis 2 to 8, Valkey and their
relatives all speak. opendal's way to Redis gets a value whole, whatever its size, takes the whole time limit for a
wrong password or a closed port, and can neither list nor put if absent (measured, 0.47.12); redis-py takes half a
second to import.
"""

from __future__ import annotations

import re
import select
from typing import TYPE_CHECKING

from gpucache.escapes import printable, without
from gpucache.log import DEBUG, tell

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from gpucache.remote.bounded import Deadline

    Reply = bytes | int | None | list["Reply"]

_MOST_LINE_BYTES = 4096
_MOST_ITEMS = 100_000
_MOST_DEEP = 3
_RECEIVED_AT_ONCE = 64 * 1024
_DEBUG_LETTERS = 200
_NUMBER = re.compile(rb"-?[0-9]{1,18}")


class ServerRefused(Exception):
    """The server has answered with an error, whose first word is ``word``: ``NOAUTH``, ``OOM``."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class BadReply(Exception):
    """What came is no answer of a Redis server, or is longer than what was asked for."""


class Connection:
    """One connection. After any error but `ServerRefused` it is of no use any more: close it."""

    def __init__(self, connected: socket.socket, secret: str = "") -> None:
        self._socket = connected
        self._secret = secret
        """What is not told, should the server say it."""
        self._received = bytearray()

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither a word nor the end of the connection."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return not readable and not self._received

    def close(self) -> None:
        """Let the connection go."""
        self._socket.close()

    def ask(self, words: Iterable[bytes], deadline: Deadline, most_bytes: int = 4096) -> Reply:
        """Send a command and return the answer, whose longest part may have ``most_bytes``.

        Raises:
            ServerRefused: the server has answered with an error.
            BadReply: the answer is none, or is too long.
            TimeoutError: the deadline is over.
            OSError: the connection is broken.
        """
        self.send(command(words), deadline)
        return self.answer(deadline, most_bytes)

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes.

        Raises:
            TimeoutError, OSError: as `ask`.
        """
        self._wait_at_most(deadline)
        self._socket.sendall(data)

    def answer(self, deadline: Deadline, most_bytes: int = 4096) -> Reply:
        """Take one answer.

        Raises:
            ServerRefused, BadReply, TimeoutError, OSError: as `ask`.
        """
        return self._reply(deadline, most_bytes, _MOST_DEEP)

    def _reply(self, deadline: Deadline, most_bytes: int, depth: int) -> Reply:
        line = self._line(deadline)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise self._refused(rest)
        number = _number(rest)
        if kind == b":":
            return number
        if kind in (b"$", b"*") and number == -1:
            return None
        if kind == b"$" and 0 <= number <= most_bytes:
            data = self._exactly(number + 2, deadline)
            if data[-2:] != b"\r\n":
                raise BadReply
            return data[:-2]
        if kind == b"*" and 0 <= number <= _MOST_ITEMS and depth > 0:
            return [self._reply(deadline, most_bytes, depth - 1) for _ in range(number)]
        raise BadReply

    def _refused(self, said: bytes) -> ServerRefused:
        text = said.decode("ascii", "backslashreplace")
        shown = printable(without(text, [self._secret]))
        tell(DEBUG, "redis: %s", shown[:_DEBUG_LETTERS])
        return ServerRefused(text.partition(" ")[0])

    def _line(self, deadline: Deadline) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            if len(self._received) > _MOST_LINE_BYTES:
                raise BadReply
            self._receive(_MOST_LINE_BYTES, deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    def _exactly(self, length: int, deadline: Deadline) -> bytes:
        while (missing := length - len(self._received)) > 0:
            self._receive(max(missing, _MOST_LINE_BYTES), deadline)
        data = bytes(self._received[:length])
        del self._received[:length]
        return data

    def _receive(self, at_most: int, deadline: Deadline) -> None:
        self._wait_at_most(deadline)
        part = self._socket.recv(min(at_most, _RECEIVED_AT_ONCE))
        if not part:
            raise ConnectionResetError("the server has closed the connection")
        self._received += part

    def _wait_at_most(self, deadline: Deadline) -> None:
        seconds = deadline.left_s()
        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)


def command(words: Iterable[bytes]) -> bytes:
    """A command as the protocol has it."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(parts)


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise BadReply
    return int(text)
