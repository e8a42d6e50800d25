"""`Channel`: one end of a connection between two processes of the pool, through which go whole messages of JSON.

A message is one datagram of a socket pair, so that none is ever torn, and descriptors may go with it. Where the process
at the other end has died, the connection is closed; but a program may have forked a process that keeps a copy of that
end, so that a closed connection is a sign of death, and an open one none of life.
"""

from __future__ import annotations

import json
import socket
from array import array
from typing import NamedTuple

from gpucache.warm.pool.forking import above_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Message = dict[str, Any]

_MOST_BYTES = 1 << 16
"""A longer message is a defect of the pool."""
_MOST_DESCRIPTORS = 4


class Received(NamedTuple):
    """A message, and the descriptors that came with it, which are the receiver's to close."""

    message: Message
    descriptors: list[int]


class Channel:
    """One end of a connection. Used by one thread; the other end belongs to another process.

    Not by `socket.send_fds` and ``recv_fds``, which take flags and pass them over (CPython 3.10 to 3.14).
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.settimeout(None)  # whatever `socket.setdefaulttimeout` says in this process

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make a connection.

        Raises:
            OSError: this process may open no more files.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(_above_stdio(ours)), cls(_above_stdio(theirs))

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Channel:
        """The end that has this descriptor in this process."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self._end.fileno()

    def send(self, message: Mapping[str, Any], *descriptors: int, wait: bool = True) -> None:
        """Send a message, and copies of descriptors.

        Raises:
            OSError: the other process has ended, or, without ``wait``, has not read what was sent before.
        """
        data = json.dumps(message).encode()
        flags = socket.MSG_NOSIGNAL
        if not wait:
            flags |= socket.MSG_DONTWAIT
        rights = array("i", descriptors)
        ancillary = []
        if descriptors:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        self._end.sendmsg([data], ancillary, flags)

    def receive(self, wait: bool = True) -> Received | None:
        """The next message; None once the other end is closed.

        Raises:
            BlockingIOError: without ``wait``, there is none now.
        """
        flags = socket.MSG_CMSG_CLOEXEC
        if not wait:
            flags |= socket.MSG_DONTWAIT
        rights = array("i")
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * rights.itemsize)
        try:
            data, ancillary, _, _ = self._end.recvmsg(_MOST_BYTES, space, flags)
        except ConnectionError:
            return None
        if not data:
            return None
        for _, _, numbers in ancillary:
            rights.frombytes(numbers)
        return Received(json.loads(data), list(rights))

    def close(self) -> None:
        """Close this end. May be called twice."""
        self._end.close()


def _above_stdio(end: socket.socket) -> socket.socket:
    return socket.socket(fileno=above_stdio(end.detach()))
