"""What a node knows of its remote at the moment: told by what its processes have learned, without asking the remote."""

from __future__ import annotations

import time

from gpucache.disk.lock_place import LockPlace
from gpucache.environment import REMOTE, TRUST_KEYS
from gpucache.errors import GpuCacheError
from gpucache.remote import outbox
from gpucache.remote.breaker import Breaker
from gpucache.remote.meeting import Meeting
from gpucache.remote.pusher_lock import push_breaker
from gpucache.remote.setting import reading_for_launch
from gpucache.remote.url import RemoteUrl
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from gpucache.remote.breaker import State
    from gpucache.store.counts import Values

    RemoteState = Literal["asked", "paused", "empty", "not-pushed", "untrusted", "refused"]
    """It is asked at each miss; it has failed, and is left alone for a while; it had nothing of much that was asked
    for, and is left alone for a while; it is asked, and for a while given nothing, since that has failed; nobody is
    trusted about what it has; its URL makes no sense."""


class RemoteNow(Value):
    """The remote that is set, and what is exchanged with it."""

    shown: str
    """Its URL without what may be secret; what is set, where that makes no sense."""
    state: RemoteState
    said: str
    """What there is to tell of a state that is not ``asked``; empty where nothing is known."""
    again_in_s: float
    """In so many seconds it is tried again; 0 where it is."""
    hits: float
    """Entries a second that it gave."""
    misses: float
    errors: float
    bytes: float
    """Bytes a second that were received for single entries."""
    to_push: int
    """Entries that this node is still to give to it."""


def remote_now(root: str, environ: Mapping[str, str], gained: Values) -> RemoteNow | None:
    """What is known of the remote of a root; None where none is set. ``gained`` is what was counted, a second."""
    try:
        url = RemoteUrl.configured(environ)
    except GpuCacheError as error:
        shown = getattr(error, "shown", REMOTE.name)
        return _remote(shown, "refused", error.problem, 0.0, 0, gained)
    if url is None:
        return None
    to_push = len(outbox.own(root)) if url.mode == "write" else 0
    state, said, again_in_s = _state(root, url, environ)
    return _remote(url.shown, state, said, again_in_s, to_push, gained)


def _remote(
    shown: str, state: RemoteState, said: str, again_in_s: float, to_push: int, gained: Values
) -> RemoteNow:
    return RemoteNow(
        shown=shown,
        state=state,
        said=said,
        again_in_s=again_in_s,
        hits=gained.get("remote_hits", 0),
        misses=gained.get("remote_misses", 0),
        errors=gained.get("remote_errors", 0) + gained.get("remote_bad", 0),
        bytes=gained.get("remote_bytes", 0),
        to_push=to_push,
    )


def _state(root: str, url: RemoteUrl, environ: Mapping[str, str]) -> tuple[RemoteState, str, float]:
    """How the remote stands, what there is to tell of that, and in how many seconds it is tried again."""
    locks = LockPlace(root).found()
    if url.trust is None and not TRUST_KEYS.text(environ):
        return "untrusted", "no key is trusted, so that nothing is read from it", 0.0
    now = time.monotonic()
    reading = reading_for_launch(root, environ)
    if reading is not None:
        meeting = Meeting.of(locks, reading.root, reading.url, reading.trust)
        known = Breaker(meeting.state).read()
        if known.is_closed(now):
            state: RemoteState = "paused" if known.has_failed(now) else "empty"
            return state, _said(known), known.closed_until - now
    if url.mode == "write":
        known = push_breaker(locks, url.text).read()
        if known.has_failed(now):
            return "not-pushed", _said(known), known.closed_until - now
    return "asked", "", 0.0


def _said(known: State) -> str:
    return known.said or known.why
