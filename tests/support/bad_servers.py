"""Servers that a remote's URL leads to and that do what no server should, on the loopback, in threads of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from support.processes import PATIENCE_S

SECRET = "hunter2-do-not-show"
ESCAPES = "\x1b]0;owned\x07\x1b[2J"

Behave = Callable[[socket.socket, threading.Event], None]


class BadServer:
    """A server that behaves so to each request, which ends with ``end``."""

    def __init__(self, behave: Behave, end: bytes = b"\r\n\r\n") -> None:
        self._behave = behave
        self._end = end
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._over = threading.Event()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE_S)
            request = b""
            while self._end not in request:
                more = connection.recv(65536)
                if not more:
                    return
                request += more
            self.requests.append(request)
            self._behave(connection, self._over)

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def bad_server(behave: Behave, end: bytes = b"\r\n\r\n") -> Iterator[BadServer]:
    server = BadServer(behave, end)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(PATIENCE_S)


def says(status: str, body: bytes = b"", **headers: str) -> Behave:
    """Answer this, and close."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return behave


def hangs(connection: socket.socket, over: threading.Event) -> None:
    over.wait(PATIENCE_S)


def slowly_has_nothing(connection: socket.socket, over: threading.Event) -> None:
    """Say so after 0.4 s."""
    over.wait(0.4)
    says("404 Not Found")(connection, over)


def drips(connection: socket.socket, over: threading.Event) -> None:
    """Ten bytes every 0.2 s: a limit of each read is never over."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not over.wait(0.2):
        connection.sendall(b"x" * 10)


def drips_headers(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while not over.wait(0.2):
        connection.sendall(f"X-{number}: y\r\n".encode())
        number += 1


def cuts(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)


def closes(connection: socket.socket, over: threading.Event) -> None:
    """Close before any answer."""


def floods_as(status: str) -> Behave:
    """400 MB, which the server announces."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: 419430400\r\n\r\n"
        connection.sendall(head.encode())
        part = b"\0" * 2**20
        for _ in range(400):
            connection.sendall(part)

    return behave


def floods_unannounced(connection: socket.socket, over: threading.Event) -> None:
    """Chunks without end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    part = b"100000\r\n" + b"\0" * 2**20 + b"\r\n"
    while not over.is_set():
        connection.sendall(part)


_FORBIDDEN = f"<Error><Code>AccessDenied</Code><Message>{SECRET}{ESCAPES}</Message></Error>"
_BUSY = f"<Error><Code>SlowDown</Code><Message>{SECRET}{ESCAPES}</Message></Error>"

BEHAVIOURS: dict[str, Behave] = {
    "hangs": hangs,
    "drips": drips,
    "drips headers": drips_headers,
    "cuts in the middle": cuts,
    "closes": closes,
    "sends 400 MB": floods_as("200 OK"),
    "403 of 400 MB": floods_as("403 Forbidden"),
    "sends without end": floods_unannounced,
    "sends another thing": says("200 OK", b"<html>" + ESCAPES.encode() * 1000),
    "sends nothing": says("200 OK"),
    "403": says("403 Forbidden", _FORBIDDEN.encode() * 2000),
    "404": says("404 Not Found"),
    "412": says("412 Precondition Failed"),
    "429": says("429 Too Many Requests", _BUSY.encode(), Retry_After="3600"),
    "500": says("500 Internal Server Error", _FORBIDDEN.encode()),
    "503": says("503 Service Unavailable", _BUSY.encode()),
    "redirects to itself": says("301 Moved Permanently", b"", Location="/again"),
    "no HTTP": lambda connection, over: connection.sendall(ESCAPES.encode() * 1000),
}
