"""`skew_s`: by how much the clock of a remote's server and this machine's differ.

Services refuse a request that was signed at a time of which they think that it is over (S3, after 15 minutes), and say
no more than that they refuse it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpucache import threads
from gpucache.remote.services import service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.remote.url import RemoteUrl

_ENDPOINTS = {
    "s3": "https://s3.amazonaws.com",
    "gs": "https://storage.googleapis.com",
    "hf": "https://huggingface.co",
}
"""Where a service is that the URL and the environment say nothing of."""


def skew_s(url: RemoteUrl, environ: Mapping[str, str], within_s: float) -> float | None:
    """By how many seconds the server's clock is ahead, to a second; None where nobody can tell within the time.

    Servers that are asked by HTTP say their time in each answer (RFC 9110, ``Date``), also to a request without
    credentials.

    Raises:
        RemoteError: ``misconfigured``: the URL names less than the service needs.
    """
    if url.library != "opendal":  # which asks all that it asks by HTTP
        return None
    endpoint = service(url, environ).settings.get("endpoint") or _ENDPOINTS.get(url.scheme)
    if endpoint is None:
        return None
    found: list[float] = []
    # Nothing bounds the look-up of a host's name: the thread is left to itself where that takes longer.
    asking = threading.Thread(target=_ask, args=(endpoint, within_s, found), daemon=True)
    try:
        threads.start(asking)
    except OSError:
        return None
    asking.join(within_s)
    return found[0] if found else None


def _ask(endpoint: str, within_s: float, found: list[float]) -> None:
    from http.client import HTTPException

    with suppress(OSError, HTTPException, ValueError):
        difference = _difference_s(endpoint, within_s)
        if difference is not None:
            found.append(difference)


def _difference_s(endpoint: str, within_s: float) -> float | None:
    from email.utils import parsedate_to_datetime
    from http.client import HTTPConnection, HTTPSConnection

    parts = urlsplit(endpoint)
    made = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = made(parts.netloc, timeout=within_s)
    try:
        before = time.time()
        connection.request("HEAD", parts.path or "/")
        said = connection.getresponse().getheader("Date")
        after = time.time()
    finally:
        connection.close()
    if said is None:
        return None
    # A date has whole seconds, rounded down.
    server = parsedate_to_datetime(said).timestamp() + 0.5
    return server - (before + after) / 2
