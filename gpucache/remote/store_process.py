"""The process that asks a store for another process, by opendal (`opendal_store`) or redis-py (`redis_store`).

Both are kept out of every other process. With opendal (all measured, 0.47.12) a child that is forked after a request
hangs for ever; the body of an error, or a list, is read whole, and shown whole while no other thread runs, so that an
answer of 400 MB to a limit of 5 s took 34 s and 4 GB; its iterator of a list panics in another thread, and what a panic
says goes to stderr; after a call by asyncio four of ten processes aborted at their ends. redis-py (8.1.0) reads a value
as long as the server says that it is, limits each read and not the whole, and the look-up of a name not at all. This
process may use so much memory, is killed when the time is over, and is replaced by the next.

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
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from gpucache.disk.spawning import offer_to_the_killer
from gpucache.escapes import printable, without
from gpucache.remote import opendal_errors, redis_store
from gpucache.remote.memory_limit import limit_memory
from gpucache.remote.opendal_store import OpendalStore
from gpucache.remote.redis_store import RedisStore
from gpucache.remote.store_messages import Ended, Receiver, send

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpucache.remote.errors import RemoteKind
    from gpucache.remote.store_messages import Meaning, Message
    from gpucache.remote.url import Library

_IDLE_S = 120.0
"""Without a question for so long this process ends; the next question starts another."""
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
_STORES: dict[Library, type[OpendalStore | RedisStore]] = {
    "opendal": OpendalStore,
    "redis": RedisStore,
}
_MEANINGS: dict[Library, Callable[[BaseException], RemoteKind | Meaning]] = {
    "opendal": opendal_errors.meaning,
    "redis": redis_store.meaning,
}


def serve(channel: socket.socket) -> None:
    """Answer one question after the other, until the channel ends or nobody asks any more."""
    receiver = Receiver(channel)
    channel.settimeout(_IDLE_S)
    library: Library = "opendal"
    store: OpendalStore | RedisStore | None = None
    secrets: list[str] = []
    with suppress(Ended, TimeoutError):
        while True:
            question, _ = receiver.take()
            act = question.pop("do")
            del question["bytes"]
            try:
                if act == "open":
                    secrets = _secrets(question["settings"], os.environ)
                    library = question.pop("library")
                    store = _STORES[library](**question)
                    answer, data = {}, b""
                else:
                    limit_memory()
                    if receiver.files:
                        question["fd"] = receiver.files.pop()
                    answer, data = getattr(store, act)(**question)
            except BaseException as error:  # opendal's panics are no `Exception`
                answer, data = _failure(error, library, secrets), b""
            send(channel, answer, data)
            answer, data = {}, b""


_QUERY = re.compile(r"(\w+://[^\s?,]*\?)[^\s,]*")
_TOKEN = re.compile(r"[\w+/=%-]{100,}")
"""What could be a token that opendal has found itself, as that of a role. No name of an object is as long."""


def _secrets(settings: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """What must not be told of settings and proxies, in each form in which a server that got it could send it back."""
    found = [settings[name] for name in _SECRETS if name in settings]
    found += [value for _, value in parse_qsl(settings.get("sas_token", ""))]
    if "password" in settings:
        found.append(_basic(settings.get("username", ""), settings["password"]))
    urls = [value for name, value in environ.items() if name.lower().endswith("_proxy")]
    for url in (*urls, settings.get("endpoint", "")):
        found += _secrets_of_url(url)
    return sorted(found, key=len, reverse=True)  # one may be a part of another


def _secrets_of_url(url: str) -> list[str]:
    with suppress(ValueError):
        parts = urlsplit(url if "//" in url else f"//{url}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if password:
            return [password, parts.password or "", _basic(user, password)]
    return []


def _basic(user: str, password: str) -> str:
    """What HTTP sends of a password (RFC 7617)."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _failure(error: BaseException, library: Library, secrets: list[str]) -> Message:
    text = str(error)
    # A signature may stand in the query of a URL.
    shown = _QUERY.sub(r"\1***", text[:_LOOKED_AT_LETTERS])
    shown = _TOKEN.sub("***", shown)
    said = printable(without(shown, secrets))[:_SAID_LETTERS]
    # That it is there and cannot be imported, as one that was built for another libc, is as if it were not.
    failed = "not-installed" if isinstance(error, ImportError) else _MEANINGS[library](error)
    return {"failed": failed, "said": f"{library}: {said}"}


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
