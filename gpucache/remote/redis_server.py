"""A remote that is a Redis server, or Valkey: ``redis://USER@HOST:PORT/DATABASE?prefix=PREFIX``, ``rediss`` with TLS.

An object is one value, under its name after the prefix (``gpucache`` without one). A server that removes values when
its memory is full removes these too: a miss.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpucache.disk.door import open_regular
from gpucache.escapes import printable
from gpucache.remote.abandonable import CallFailed, TimeIsOver, returned_in_time
from gpucache.remote.bounded import PART_BYTES, BoundedReader, Deadline, as_file
from gpucache.remote.checking import checked
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.redis_protocol import BadReply, Connection, ServerRefused, command
from gpucache.remote.remote import Listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from gpucache.remote.errors import RemoteKind, Tried
    from gpucache.remote.redis_protocol import Reply
    from gpucache.remote.remote import Ability, CheckReport, Patience
    from gpucache.remote.url import RemoteUrl

PASSWORD = "REDISCLI_AUTH"
"""The variable from which redis-cli takes a password, too."""
_PORT = 6379
_PREFIX = "gpucache"
_MOST_VALUE_BYTES = 512 * 2**20
"""Redis's own limit of a value (``proto-max-bulk-len``)."""
_SCANNED_AT_ONCE = b"500"
_MOST_NAME_BYTES = 4096

_KINDS: dict[str, RemoteKind] = {
    "NOAUTH": "refused",
    "WRONGPASS": "refused",
    "NOPERM": "refused",
    "READONLY": "refused",
    "DENIED": "refused",
    "OOM": "full",
    "MISCONF": "full",
    "LOADING": "server",
    "BUSY": "server",
    "MASTERDOWN": "server",
    "CLUSTERDOWN": "server",
    "MOVED": "unsupported",
    "ASK": "unsupported",
}
"""What the first words of a server's errors mean. ``MISCONF``: its disk is full. ``MOVED``: one of a cluster."""


class RedisServer:
    """The objects on a Redis server; a `Remote`."""

    def __init__(self, url: RemoteUrl, patience: Patience, environ: Mapping[str, str]) -> None:
        self.shown = url.shown
        self._url = url
        self._patience = patience
        self._password = environ.get(PASSWORD) or None
        self._database = _database(url)
        self._prefix = f"{url.option('prefix') or _PREFIX}/".encode()
        self._idle: list[Connection] = []
        self._pid = os.getpid()

    @property
    def can(self) -> frozenset[Ability]:
        """As `Remote.can`."""
        if self._url.mode == "read":
            return frozenset({"list"})
        return frozenset({"list", "put", "put-if-absent", "delete"})

    def come_up(self) -> None:
        """As `Remote.come_up`: nothing is slow here."""

    @contextmanager
    def get(self, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
        """As `Remote.get`."""
        deadline = Deadline(self._patience)
        first = [self._part(name, 0, PART_BYTES, deadline)]
        if not first[0]:  # Redis answers so of a key that is not there; no object is empty
            raise NotThere(self.shown, name)
        done = 0

        def more(length: int) -> bytes:
            nonlocal done
            if first:
                part = first.pop()
                if len(part) > length:
                    first.append(part[length:])
                    part = part[:length]
            else:
                part = self._part(name, done, length, deadline)
            done += len(part)
            return part

        def refusal(kind: RemoteKind) -> RemoteError:
            return RemoteError(self.shown, kind, "get", name)

        yield as_file(BoundedReader(more, limit_bytes, deadline, refusal))

    def put_new(self, name: str, path: str, replace: bool = False) -> bool:
        """As `Remote.put_new`."""
        self._refuse_read_mode("put", name)
        fd, found = open_regular(path)
        with os.fdopen(fd, "rb") as source:
            if found.st_size > _MOST_VALUE_BYTES:
                detail = "Redis takes no value above 512 MiB"
                raise RemoteError(self.shown, "too-large", "put", name, detail)
            deadline = Deadline(self._patience)
            with self._asking("put", name, deadline) as connection:
                reply = _put(connection, self._key(name), source, found.st_size, replace, deadline)
        return reply is not None

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `Remote.list`."""
        deadline = Deadline(self._patience)
        seen: set[bytes] = set()
        cursor = b"0"
        while True:
            with self._asking("list", prefix, deadline) as connection:
                cursor, keys = _scanned(connection, cursor, self._key(prefix), deadline)
                new = [key for key in keys if key not in seen]  # a scan may give a key twice
                sizes = _sizes(connection, new, deadline)
            seen.update(new)
            for key, size in zip(new, sizes, strict=True):
                name = key.removeprefix(self._prefix).decode("utf-8", "backslashreplace")
                if size is not None and key.startswith(self._key(prefix)):
                    yield Listed(name, size, None)
            if cursor == b"0":
                return

    def delete(self, name: str) -> None:
        """As `Remote.delete`."""
        self._refuse_read_mode("delete", name)
        deadline = Deadline(self._patience)
        with self._asking("delete", name, deadline) as connection:
            connection.ask([b"DEL", self._key(name)], deadline)

    def check(self) -> CheckReport:
        """As `Remote.check`."""
        return checked(self, self._url.mode)

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    def _part(self, name: str, begin: int, length: int, deadline: Deadline) -> bytes:
        words = [b"GETRANGE", self._key(name), b"%d" % begin, b"%d" % (begin + length - 1)]
        with self._asking("get", name, deadline) as connection:
            return _as_bytes(connection.ask(words, deadline, length))

    def _refuse_read_mode(self, tried: Tried, name: str) -> None:
        if self._url.mode == "read":
            detail = "its URL does not say mode=write"
            raise RemoteError(self.shown, "misconfigured", tried, name, detail)

    @contextmanager
    def _asking(self, tried: Tried, name: str, deadline: Deadline) -> Iterator[Connection]:
        """A connection on which to ask; all that goes wrong with that is a `RemoteError`."""
        try:
            connection = self._connection(deadline)
            try:
                yield connection
            except ServerRefused:
                self._idle.append(connection)
                raise
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
        except ServerRefused as error:
            kind = _KINDS.get(error.word, "bad-answer")
            raise RemoteError(self.shown, kind, tried, name) from None
        except BadReply:
            raise RemoteError(self.shown, "bad-answer", tried, name) from None
        except (TimeoutError, TimeIsOver):
            raise RemoteError(self.shown, "timeout", tried, name) from None
        except OSError as error:
            raise RemoteError(self.shown, "unreachable", tried, name, _why(error)) from None

    def _connection(self, deadline: Deadline) -> Connection:
        """An idle connection that the server has not closed meanwhile, or a new one."""
        if self._pid != os.getpid():  # the parent goes on with its own
            self._pid, self._idle = os.getpid(), []
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                connection = self._idle.pop()
                if connection.is_quiet():
                    return connection
                connection.close()
        return self._connected(deadline)

    def _connected(self, deadline: Deadline) -> Connection:
        try:
            # Nothing else bounds the look-up of a name.
            dialled = returned_in_time(self._dialled(deadline), deadline.left_s())
        except CallFailed as failed:
            raise _as_oserror(failed.error) from None
        connection = Connection(dialled, self._password or "")
        try:
            self._greet(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _dialled(self, deadline: Deadline) -> Callable[[], socket.socket]:
        """What connects to the server, in as many calls as that takes."""
        host, port = _address(self._url)
        has_tls = self._url.scheme == "rediss"

        def dial() -> socket.socket:
            connected = socket.create_connection((host, port), deadline.left_s())
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not has_tls:
                return connected
            import ssl  # slow to import

            return ssl.create_default_context().wrap_socket(connected, server_hostname=host)

        return dial

    def _greet(self, connection: Connection, deadline: Deadline) -> None:
        """Say who this is, and of which database the talk is."""
        if self._password is not None:
            user = [] if self._url.user is None else [self._url.user.encode()]
            connection.ask([b"AUTH", *user, self._password.encode()], deadline)
        if self._database:
            connection.ask([b"SELECT", b"%d" % self._database], deadline)


def _database(url: RemoteUrl) -> int:
    """The number of the database that a URL names; 0 without one."""
    if not url.path:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", url.path):
        detail = "its path is no number of a database, such as /0; a prefix is ?prefix=NAME"
        raise RemoteError(url.shown, "misconfigured", "reach", detail=detail)
    return int(url.path)


def _address(url: RemoteUrl) -> tuple[str, int]:
    parts = urlsplit(f"//{url.host}")
    return parts.hostname or "", parts.port or _PORT


def _as_oserror(error: BaseException) -> OSError:
    """What went wrong while a connection was made."""
    if isinstance(error, OSError):
        return error
    return OSError(
        errno.EINVAL, "no such address"
    )  # a host that no name service takes: UnicodeError


def _why(error: OSError) -> str:
    """Why there is no connection, in the words of the operating system or of the TLS library."""
    reason = getattr(error, "reason", None)  # of TLS
    if reason:
        return f"TLS could not be agreed on ({printable(str(reason))[:80]})"
    return printable(error.strerror or "")[:80]


def _as_bytes(reply: Reply) -> bytes:
    if not isinstance(reply, bytes):
        raise BadReply
    return reply


def _put(
    connection: Connection,
    key: bytes,
    source: BinaryIO,
    size: int,
    replace: bool,
    deadline: Deadline,
) -> Reply:
    """Send a file's content as a value; the answer is None where there was one, and ``replace`` was not said."""
    words = 3 if replace else 4
    head = command([b"SET", key]).replace(b"*2", b"*%d" % words, 1)
    connection.send(head + b"$%d\r\n" % size, deadline)
    left = size
    while left:
        part = source.read(min(left, PART_BYTES))
        if not part:
            raise BadReply  # the file has become shorter, and the command cannot be finished
        connection.send(part, deadline)
        left -= len(part)
    connection.send(b"\r\n" if replace else b"\r\n$2\r\nNX\r\n", deadline)
    return connection.answer(deadline)


_GLOB = re.compile(rb"([\\*?\[\]^-])")


def _scanned(
    connection: Connection, cursor: bytes, prefix: bytes, deadline: Deadline
) -> tuple[bytes, list[bytes]]:
    """The next cursor of a scan, and the keys that came with this step."""
    pattern = _GLOB.sub(rb"\\\1", prefix) + b"*"
    words = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCANNED_AT_ONCE]
    reply = connection.ask(words, deadline, _MOST_NAME_BYTES)
    if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
        raise BadReply
    return _as_bytes(reply[0]), [_as_bytes(key) for key in reply[1]]


def _sizes(connection: Connection, keys: list[bytes], deadline: Deadline) -> list[int | None]:
    """The sizes of values; None for a key that is gone meanwhile, or whose value is no text."""
    connection.send(b"".join(command([b"STRLEN", key]) for key in keys), deadline)
    sizes: list[int | None] = []
    for _ in keys:
        try:
            size = connection.answer(deadline)
        except ServerRefused:
            size = None
        sizes.append(size if isinstance(size, int) and size > 0 else None)
    return sizes
