"""A server that speaks as much of Redis's protocol as a pull needs, and gives an object up to a gate."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from support.processes import PATIENCE_S

_PART_BYTES = 512


class SlowRedis:
    """Gives one object, whatever it is asked for, 512 bytes at a time; from ``gate`` bytes on nothing, until `open`."""

    def __init__(self, content: bytes, gate: int) -> None:
        self.content = content
        self.gate = gate
        self.reached = threading.Event()
        """Set once somebody waits at the gate."""
        self.asked = 0
        """How often an object was begun."""
        self._goes_on = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def open(self) -> None:
        self._goes_on.set()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with (
            connection,
            suppress(OSError, ValueError, IndexError),
            connection.makefile("rb") as asked,
        ):
            while line := asked.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(asked.readline()[1:])
                    words.append(asked.read(length + 2)[:-2])
                connection.sendall(self._reply(words))

    def _reply(self, words: list[bytes]) -> bytes:
        if words[0].upper() != b"GETRANGE" or b"/v1/packs/" not in words[1]:
            return b"$0\r\n\r\n" if words[0].upper() == b"GETRANGE" else b"+OK\r\n"
        begin, end = int(words[2]), int(words[3]) + 1
        self.asked += begin == 0
        if begin >= self.gate:
            self.reached.set()
            self._goes_on.wait(PATIENCE_S)
        end = min(end, begin + _PART_BYTES)
        if not self._goes_on.is_set():
            end = min(end, self.gate)
        part = self.content[begin:end]
        return b"$%d\r\n%s\r\n" % (len(part), part)

    def close(self) -> None:
        self.open()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow_redis(content: bytes, gate: int) -> Iterator[SlowRedis]:
    server = SlowRedis(content, gate)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(PATIENCE_S)
