"""What kind of failure an error of opendal's is.

Of an error that a read of a file raises, nothing but a text is left (opendal 0.47.12: `OSError`), so all errors are
told by their texts: they begin with opendal's own word for their kind, and name the call in which they came up and the
status of an HTTP answer. What a server has written stands in them too, and can at worst make a failure another kind of
failure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucache.remote.errors import RemoteKind
    from gpucache.remote.store_messages import Meaning

_BY_WORD: dict[str, RemoteKind | Meaning] = {
    "NotFound": "not-there",
    "NotADirectory": "not-there",
    "IsADirectory": "not-there",
    "ConditionNotMatch": "there-already",
    "AlreadyExists": "there-already",
    "Conflict": "conflict",
    "PermissionDenied": "refused",
    "RateLimited": "rate-limited",
    "ConfigInvalid": "misconfigured",
    "Unsupported": "unsupported",
}
_BY_STATUS: dict[int, RemoteKind | Meaning] = {
    401: "refused",
    403: "refused",
    404: "not-there",
    405: "unsupported",
    407: "refused",
    408: "timeout",
    409: "conflict",
    410: "not-there",
    411: "unsupported",
    412: "there-already",
    413: "too-large",
    425: "rate-limited",
    429: "rate-limited",
    501: "unsupported",
    504: "timeout",
    507: "full",
}
_BY_CALL: tuple[tuple[str, RemoteKind], ...] = (
    ("operation timeout reached", "timeout"),  # of a read "io operation timeout reached"
    ("called: reqsign", "misconfigured"),
    ("called: http::Request::build", "misconfigured"),
    ("request url is invalid", "misconfigured"),
    ("called: reqwest::send", "unreachable"),
    ("called: reqwest::fetch", "bad-answer"),
)
_WORD = re.compile(r"(\w+) \((?:permanent|temporary|persistent)\) at ")
_STATUS = re.compile(r"response: Parts \{ status: (\d{3}),")
_FULL = re.compile(r"QuotaExceeded|StorageFull|InsufficientStorage|NoSpace|No space left|DiskFull")
_SLOW = re.compile(r'code: "(?:SlowDown|RequestLimitExceeded|TooManyRequests|ServerBusy)"')


def meaning(error: BaseException) -> RemoteKind | Meaning:
    """The kind of failure, or what an answer means that is none; of what is not known, ``bad-answer``."""
    text = str(error)
    word = _WORD.match(text)
    known = _BY_WORD.get(word.group(1)) if word else None
    if known is not None and known != "refused":
        return known
    if _FULL.search(text):
        return "full"
    if known is not None:
        return known
    if _SLOW.search(text):
        return "rate-limited"
    status = _STATUS.search(text)
    if status:
        number = int(status.group(1))
        return _BY_STATUS.get(number) or ("server" if number >= 500 else "bad-answer")
    for call, kind in _BY_CALL:
        if call in text:
            return kind
    return "bad-answer"
