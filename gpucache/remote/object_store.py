"""The remotes that opendal reaches: S3, Google's and Azure's stores, WebDAV, the Hugging Face Hub. Its only door.

A process that has made a request and is then forked must not ask in the child: opendal's threads are not there.

Limit: what a server lists, or answers beside an error, opendal reads whole; only an object comes in parts.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from gpucache.disk.door import open_regular
from gpucache.errors import NotInstalledError
from gpucache.remote.abandonable import CallFailed, TimeIsOver, Workers
from gpucache.remote.bounded import PART_BYTES, BoundedReader, Deadline, as_file
from gpucache.remote.checking import checked
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.opendal_errors import meaning
from gpucache.remote.remote import Listed
from gpucache.remote.services import service

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from typing import BinaryIO

    import opendal

    from gpucache.remote.abandonable import Worker
    from gpucache.remote.errors import RemoteKind, Tried
    from gpucache.remote.remote import Ability, CheckReport, Patience
    from gpucache.remote.url import RemoteUrl

T = TypeVar("T")

_SMALL_BYTES = 2**20
"""A file that is no longer is put without a look first, where the store itself puts only if absent."""
_ONE_PIECE_BYTES = 32 * 2**20
"""A file that is no longer is put by one request."""
_PART_OF_A_PUT = 16 * 2**20
_LISTED_AT_ONCE = 256
_MOST_CONFLICTS = 5
_WITH_BUCKETS = ("s3", "gs", "az")


class ObjectStore:
    """The objects of a service that opendal knows; a `Remote`."""

    def __init__(self, url: RemoteUrl, patience: Patience, environ: Mapping[str, str]) -> None:
        self.shown = url.shown
        self._url = url
        self._patience = patience
        self._workers = Workers()
        self._operator = _operator(url, patience, environ)
        self._capability = self._operator.capability()
        self._pid = os.getpid()

    @property
    def can(self) -> frozenset[Ability]:
        """As `Remote.can`."""
        able = self._capability
        found: dict[Ability, bool] = {"list": able.list}
        if self._url.mode == "write":
            found["put"] = able.write
            found["put-if-absent"] = able.write_with_if_not_exists
            found["delete"] = able.delete
        return frozenset(ability for ability, is_there in found.items() if is_there)

    @contextmanager
    def get(self, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
        """As `Remote.get`."""
        with self._request("get", name) as request:
            file = request.call(lambda: self._operator.open(name, "rb"))
            # That an object is not there, a store says with the first part.
            first = [request.call(lambda: bytes(file.read(PART_BYTES)))]

            def more(length: int) -> bytes:
                if first:
                    part = first.pop()
                    if len(part) > length:
                        first.append(part[length:])
                    return part[:length]
                return request.call(lambda: bytes(file.read(length)))

            yield as_file(BoundedReader(more, limit_bytes, request.deadline, request.refusal))

    def put_new(self, name: str, path: str, replace: bool = False) -> bool:
        """As `Remote.put_new`."""
        if "put" not in self.can:
            raise self._cannot_write("put", name)
        fd, found = open_regular(path)
        with os.fdopen(fd, "rb") as source, self._request("put", name) as request:
            is_conditional = not replace and "put-if-absent" in self.can
            is_small = found.st_size <= _SMALL_BYTES
            looks_first = not replace and not (is_conditional and is_small)
            if looks_first and request.is_there(self._operator):
                return False
            if found.st_size <= _ONE_PIECE_BYTES or not self._capability.write_can_multi:
                return self._put_at_once(request, source.read(), is_conditional)
            return self._put_in_parts(request, source, is_conditional)

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `Remote.list`."""
        with self._request("list", prefix) as request:
            parts = _listed(self._operator, prefix)
            request.at_end(parts.close)
            try:
                while some := request.call(lambda: next(parts, None)):
                    yield from some
            except NotThere:
                if self._url.scheme in _WITH_BUCKETS:  # that have no directories
                    raise RemoteError(
                        self.shown, "misconfigured", "list", prefix, "there is no such bucket"
                    ) from None

    def delete(self, name: str) -> None:
        """As `Remote.delete`."""
        if "delete" not in self.can:
            raise self._cannot_write("delete", name)
        with self._request("delete", name) as request:
            request.call(lambda: self._operator.delete(name))

    def check(self) -> CheckReport:
        """As `Remote.check`."""
        return checked(self, self._url.mode)

    def _cannot_write(self, tried: Tried, name: str) -> RemoteError:
        if self._url.mode == "read":
            detail = "its URL does not say mode=write"
            return RemoteError(self.shown, "misconfigured", tried, name, detail)
        return RemoteError(self.shown, "unsupported", tried, name)

    @contextmanager
    def _request(self, tried: Tried, name: str) -> Iterator[_Request]:
        if self._pid != os.getpid():
            detail = "this process was forked from the one that opened the remote"
            raise RemoteError(self.shown, "unsupported", tried, name, detail)
        request = _Request(self.shown, tried, name, self._workers, Deadline(self._patience))
        try:
            yield request
        finally:
            request.end()

    def _put_at_once(self, request: _Request, data: bytes, is_conditional: bool) -> bool:
        options = {"if_not_exists": True} if is_conditional else {}
        for _ in range(_MOST_CONFLICTS):
            try:
                request.call(lambda: self._operator.write(request.name, data, **options))
                return True
            except _ThereAlready:
                if is_conditional:
                    return False
                raise request.refusal("bad-answer") from None
            except _Conflict:
                # Another conditional write was being done: the S3 documents ask for another try.
                if request.is_there(self._operator):
                    return False
        raise request.refusal("rate-limited")

    def _put_in_parts(self, request: _Request, source: BinaryIO, is_conditional: bool) -> bool:
        options: dict[str, Any] = {"chunk": _PART_OF_A_PUT}
        if is_conditional:
            options["if_not_exists"] = True
        try:
            file = request.call(lambda: self._operator.open(request.name, "wb", **options))
            while part := source.read(_PART_OF_A_PUT):
                request.call(lambda part=part: file.write(part))  # type: ignore[misc]
            request.call(file.close)
            return True
        except (_ThereAlready, _Conflict):
            if is_conditional:
                return False
            raise request.refusal("bad-answer") from None


class _ThereAlready(Exception):
    """A conditional write has found an object."""


class _Conflict(Exception):
    """A conditional write has met another one."""


class _Request:
    """One request to a store: which may take several calls, and has one deadline and one thread for all of them."""

    def __init__(
        self, remote: str, tried: Tried, name: str, workers: Workers, deadline: Deadline
    ) -> None:
        self.name = name
        self.deadline = deadline
        self._remote = remote
        self._tried = tried
        self._workers = workers
        try:
            self._worker: Worker | None = workers.take()
        except OSError as error:
            detail = f"no thread can be started: {error.strerror}"
            raise RemoteError(remote, "unreachable", tried, name, detail) from None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function of opendal's, and make its errors ours."""
        if self._worker is None:
            raise self.refusal("timeout")
        try:
            return self._worker.call(function, self.deadline.left_s())
        except TimeIsOver:
            self._worker = None
            raise self.refusal("timeout") from None
        except CallFailed as failed:
            raise self._failure(failed.error) from None

    def is_there(self, operator: opendal.Operator) -> bool:
        """Whether there is an object of this request's name."""
        try:
            self.call(lambda: operator.stat(self.name))
            return True
        except NotThere:
            return False

    def refusal(self, kind: RemoteKind) -> RemoteError:
        """The error that says how this request failed."""
        return RemoteError(self._remote, kind, self._tried, self.name)

    def at_end(self, last: Callable[[], object]) -> None:
        """Have ``last`` called in this request's thread when the request is over, or once the thread is free."""
        if self._worker is not None:
            self._worker.last = last

    def end(self) -> None:
        """Let the next request have this one's thread, or end the thread with its last call."""
        if self._worker is None:
            return
        if self._worker.last is None:
            self._workers.give_back(self._worker)
        else:
            self._worker.end()

    def _failure(self, error: BaseException) -> Exception:
        found = meaning(error)
        if found == "not-there":
            return NotThere(self._remote, self.name)
        if found != "there-already" and found != "conflict":
            return self.refusal(found)
        if self._tried != "put":
            return self.refusal("bad-answer")  # nothing else was asked to depend on a condition
        return _Conflict() if found == "conflict" else _ThereAlready()


def _operator(url: RemoteUrl, patience: Patience, environ: Mapping[str, str]) -> opendal.Operator:
    """The object by which opendal acts on a remote."""
    try:
        import opendal
        from opendal.layers import TimeoutLayer
    except ImportError:
        raise NotInstalledError("opendal") from None
    name, settings = service(url, environ)
    # By this limit an abandoned thread ends; nobody waits for it.
    limits = TimeoutLayer(timeout=patience.in_all_s, io_timeout=patience.in_all_s)
    try:
        return opendal.Operator(name, **settings).layer(limits)
    except Exception as error:
        meaning(error)  # which tells for debugging
        raise RemoteError(url.shown, "misconfigured", "reach") from None


def _listed(operator: opendal.Operator, prefix: str) -> Generator[list[Listed], None, None]:
    """What lies in a store, some at a time; what only stands for a directory is left out.

    opendal's own iterator may be touched only by the thread in which it came up: so does this one's, which is closed
    there too.
    """
    entries = iter(operator.list(prefix, recursive=True))
    while some := list(islice(entries, _LISTED_AT_ONCE)):
        kept = []
        for entry in some:
            name = entry.path
            if name.startswith(prefix) and not name.endswith("/"):
                kept.append(Listed(name, *_size_and_time(entry)))
        if kept:
            yield kept


def _size_and_time(entry: opendal.Entry) -> tuple[int | None, float | None]:
    metadata = entry.metadata
    changed = metadata.last_modified
    return metadata.content_length, changed.timestamp() if changed else None
