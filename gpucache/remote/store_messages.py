"""What the process of a store (`store_process`) and the one that asks it (`store_client`) say to each other.

A message is a line of JSON, after which so many bytes follow as its field ``bytes`` says.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    Message = dict[str, Any]
    Listing = list[tuple[str, int, float | None]]
    """Names, sizes in bytes, and times of change in seconds since 1970 where those are known."""

Meaning = Literal["not-there", "there-already", "conflict"]
"""What an answer may mean that is no failure. ``conflict``: another conditional write is being done at the moment."""
_MOST_LINE_BYTES = 2**20
_MOST_BYTES = 2**20
_RECEIVED_AT_ONCE = 2**17
MOST_FILES = 1
MOST_NAME_LETTERS = 256
"""What has a longer name is no object of gpucache's, and is not listed: some hundred of these fit into a line."""


class Ended(Exception):
    """The other process has closed the channel, or says nothing sensible any more."""


def send(
    channel: socket.socket, message: Message, data: bytes = b"", fd: int | None = None
) -> None:
    """Send a message, and with it perhaps an open file.

    Raises:
        TimeoutError: the other process does not take it.
        Ended: the other process is gone.
    """
    line = json.dumps({**message, "bytes": len(data)}).encode() + b"\n"
    try:
        if fd is None:
            channel.sendall(line + data)
        else:
            sent = socket.send_fds(channel, [line], [fd])
            channel.sendall(line[sent:] + data)
    except TimeoutError:
        raise
    except OSError:
        raise Ended from None


class Receiver:
    """Takes one message after the other from a channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = bytearray()
        self.files: list[int] = []
        """The descriptors of files that have come and that nobody has taken yet."""

    def take(self, wait: Callable[[], None] = lambda: None) -> tuple[Message, bytes]:
        """The next message, and the bytes after its line. ``wait`` is called before each look for more.

        Raises:
            TimeoutError: no message has come in the time that ``wait`` or the channel's owner has set.
            Ended: none will come.
        """
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _MOST_LINE_BYTES:
                raise Ended
            self._receive(wait)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message: Message = json.loads(line)
            length = int(message["bytes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Ended from None
        if not 0 <= length <= _MOST_BYTES:
            raise Ended
        while len(self._received) < length:
            self._receive(wait)
        data = bytes(self._received[:length])
        del self._received[:length]
        return message, data

    def _receive(self, wait: Callable[[], None]) -> None:
        wait()
        try:
            part, files, _, _ = socket.recv_fds(self._channel, _RECEIVED_AT_ONCE, MOST_FILES)
        except TimeoutError:
            raise
        except OSError:
            raise Ended from None
        self.files += files
        if not part:
            raise Ended
        self._received += part
