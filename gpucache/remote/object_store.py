"""The remotes that are servers: S3, Google's and Azure's stores, WebDAV, the Hugging Face Hub, Redis.

Each request is made by a process of its own kind (`store_process` says why), which is killed when its time is over.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpucache.disk.door import open_regular
from gpucache.errors import NotInstalledError
from gpucache.remote.bounded import PART_BYTES, BoundedReader, Deadline, as_file
from gpucache.remote.checking import checked
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.object_names import PACKS
from gpucache.remote.remote import Listed
from gpucache.remote.services import service as service_of
from gpucache.remote.store_client import Died, StoreProcesses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    from gpucache.remote.errors import RemoteKind, Tried
    from gpucache.remote.remote import Ability, CheckReport, Patience
    from gpucache.remote.store_client import StoreProcess
    from gpucache.remote.store_messages import Message
    from gpucache.remote.url import Library, RemoteUrl, Scheme

_ABLE: dict[Scheme, frozenset[Ability]] = {
    "s3": frozenset({"list", "put", "put-if-absent", "delete"}),
    "gs": frozenset({"list", "put", "put-if-absent", "delete"}),
    "az": frozenset({"list", "put", "put-if-absent", "delete"}),
    "webdav": frozenset({"list", "put", "delete"}),
    "webdav+https": frozenset({"list", "put", "delete"}),
    "hf": frozenset({"list"}),
    "redis": frozenset({"list", "put", "put-if-absent", "delete"}),
    "rediss": frozenset({"list", "put", "put-if-absent", "delete"}),
}
"""What can be done with each service (opendal 0.47.12, `Operator.capability`; Redis by ``SET NX`` and ``SCAN``)."""
_MOST_VALUE_BYTES = 512 * 2**20
"""Redis's own limit of a value (``proto-max-bulk-len``)."""
_SMALL_BYTES = 2**20
"""An entry that is no longer is put without a look first, where the store itself puts only if absent."""
_MOST_CONFLICTS = 5
_WITH_BUCKETS = ("s3", "gs", "az")


class ObjectStore:
    """The objects of a service; a `Remote`."""

    def __init__(self, url: RemoteUrl, patience: Patience, environ: Mapping[str, str]) -> None:
        service = service_of(url, environ)
        if importlib.util.find_spec(service.library) is None:
            raise NotInstalledError(service.library)
        self.shown = url.shown
        self._url = url
        self._patience = patience
        self._library = service.library
        try:
            self._processes = StoreProcesses(service, environ, patience)
        except OSError as error:
            raise _not_started(self.shown, "reach", "", error) from None

    @property
    def can(self) -> frozenset[Ability]:
        """As `Remote.can`."""
        able = _ABLE[self._url.scheme]
        return able if self._url.mode == "write" else able & {"list"}

    def come_up(self) -> None:
        """As `Remote.come_up`: the first process, which is to import a library, is waited for."""
        with self._request("reach", "") as request:
            request.come_up()

    @contextmanager
    def get(self, name: str, limit_bytes: int) -> Iterator[BinaryIO]:
        """As `Remote.get`."""
        with self._request("get", name) as request:
            # That an object is not there, a store says with the first part.
            _, data = request.ask({"do": "get", "name": name, "length": PART_BYTES})
            first = [data]

            def more(length: int) -> bytes:
                if first:
                    part = first.pop()
                    if len(part) > length:
                        first.append(part[length:])
                    return part[:length]
                return request.ask({"do": "more", "length": length})[1]

            yield as_file(BoundedReader(more, limit_bytes, request.deadline, request.refusal))

    def put_new(self, name: str, path: str, replace: bool = False) -> bool:
        """As `Remote.put_new`."""
        if "put" not in self.can:
            raise self._cannot_write("put", name)
        fd, found = open_regular(path)
        with os.fdopen(fd, "rb"), self._request("put", name) as request:
            if self._library == "redis" and found.st_size > _MOST_VALUE_BYTES:
                raise request.refusal("too-large", "Redis takes no value above 512 MiB")
            is_conditional = not replace and "put-if-absent" in self.can
            # A server that ignores the condition may replace an entry by the same one, and no pack unasked.
            is_small_entry = found.st_size <= _SMALL_BYTES and not name.startswith(PACKS)
            looks_first = not replace and not (is_conditional and is_small_entry)
            if looks_first and request.is_seen_there(is_conditional):
                return False
            return _put(request, fd, is_conditional)

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `Remote.list`."""
        with self._request("list", prefix) as request:
            try:
                answer, _ = request.ask({"do": "list", "prefix": prefix})
                while answer["more"]:
                    for name, size_bytes, modified_s in answer["listed"]:
                        if name.startswith(prefix):
                            yield Listed(name, size_bytes, modified_s)
                    answer, _ = request.ask({"do": "next"})
            except NotThere:
                if self._url.scheme in _WITH_BUCKETS:  # that have no directories
                    detail = "there is no such bucket"
                    raise request.refusal("misconfigured", detail) from None

    def delete(self, name: str) -> None:
        """As `Remote.delete`."""
        if "delete" not in self.can:
            raise self._cannot_write("delete", name)
        with self._request("delete", name) as request:
            request.ask({"do": "delete", "name": name})

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
        try:
            process = self._processes.take()
            process.come_up()
        except (OSError, Died) as error:
            raise _not_started(self.shown, tried, name, error) from None
        try:
            # The time of the request begins here: no server has made the process come up late.
            deadline = Deadline(self._patience)
            yield _Request(self.shown, self._library, tried, name, process, deadline)
        finally:
            self._processes.give_back(process)


def _not_started(remote: str, tried: Tried, name: str, error: Exception) -> RemoteError:
    why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it died"
    detail = f"the process that asks such remotes cannot be started: {why}"
    return RemoteError(remote, "unreachable", tried, name, detail)


class _ThereAlready(Exception):
    """A conditional write has found an object."""


class _Conflict(Exception):
    """A conditional write has met another one."""


class _Request:
    """One request to a store, which may be several questions to a process, with one deadline for all of them."""

    def __init__(
        self,
        remote: str,
        library: Library,
        tried: Tried,
        name: str,
        process: StoreProcess,
        deadline: Deadline,
    ) -> None:
        self.name = name
        self.deadline = deadline
        self._remote = remote
        self._library = library
        self._tried = tried
        self._process = process

    def ask(self, question: Message, fd: int | None = None) -> tuple[dict[str, Any], bytes]:
        """Ask the process; how a request failed is an error of ours."""
        with self._telling():
            answer, data = self._process.ask(question, self.deadline, fd)
        self._refuse_failed(answer, question.get("if_absent", False))
        return answer, data

    def come_up(self) -> None:
        """Wait until the process could ask."""
        with self._telling():
            answer = self._process.come_up()
        self._refuse_failed(answer)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Make what happens to the process an error of the request's."""
        try:
            yield
        except TimeoutError:
            raise self.refusal("timeout") from None
        except Died:
            detail = "its answer took more memory than any answer may, or the process died"
            raise self.refusal("bad-answer", detail) from None

    def _refuse_failed(self, answer: Mapping[str, Any], is_conditional: bool = False) -> None:
        failed = answer.get("failed")
        if failed is not None:
            raise self._failure(failed, is_conditional)

    def is_there(self) -> bool:
        """Whether there is an object of this request's name."""
        try:
            self.ask({"do": "stat", "name": self.name})
            return True
        except NotThere:
            return False

    def is_seen_there(self, may_be_blind: bool) -> bool:
        """As `is_there`; with ``may_be_blind`` False too where this user may not look, only write."""
        try:
            return self.is_there()
        except RemoteError as error:
            if may_be_blind and error.kind == "refused":
                return False
            raise

    def refusal(self, kind: RemoteKind, detail: str = "") -> RemoteError:
        """The error that says how this request failed."""
        return RemoteError(self._remote, kind, self._tried, self.name, detail)

    def _failure(self, failed: Any, is_conditional: bool) -> Exception:
        if failed == "not-installed":
            return NotInstalledError(self._library)
        if failed == "not-there":
            return NotThere(self._remote, self.name)
        if failed not in ("there-already", "conflict"):
            return self.refusal(failed)
        if not is_conditional:
            return self.refusal("bad-answer")  # nothing was asked to depend on a condition
        return _Conflict() if failed == "conflict" else _ThereAlready()


def _put(request: _Request, fd: int, is_conditional: bool) -> bool:
    question = {"do": "put", "name": request.name, "if_absent": is_conditional}
    for _ in range(_MOST_CONFLICTS):
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            request.ask(question, fd)
            return True
        except _ThereAlready:
            return False
        except NotThere:
            detail = "there is no such bucket or directory"
            raise request.refusal("misconfigured", detail) from None
        except _Conflict:
            # Another conditional write was being done: the documents of S3 ask for another try.
            if request.is_there():
                return False
    raise request.refusal("rate-limited")
