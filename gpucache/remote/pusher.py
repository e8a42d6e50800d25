"""The process that gives a node's new entries to the remote: started by a rank, gone soon after the last entry.

It does all that a rank must not: it reads the key that signs, and waits for the remote. It may be killed at any
instant, as the end of its job does: a marker goes only once the remote has the entry, and a put that is done again
changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import NamedTuple

from gpucache import configuration
from gpucache.archive.collect import Collected, NotCollected, collect
from gpucache.archive.errors import BadPack
from gpucache.archive.signature import SigningKey
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.spawning import settle_in
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.environment import REMOTE
from gpucache.errors import GpuCacheError
from gpucache.escapes import printable
from gpucache.layout import paths
from gpucache.remote import outbox
from gpucache.remote.breaker import FIRST_S, Breaker
from gpucache.remote.errors import RemoteError
from gpucache.remote.opening import open_remote
from gpucache.remote.pusher_lock import held, push_breaker
from gpucache.remote.remote import Patience
from gpucache.remote.single_entry import put_entry
from gpucache.remote.url import RemoteUrl
from gpucache.store.manifest import entry_path, raise_unless_damage
from gpucache.store.stats import REMOTE as NO_DEVICE
from gpucache.store.stats import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.remote.outbox import Marker
    from gpucache.remote.remote import Remote

IDLE_S = 5.0
"""So long after the last entry it waits for another: ranks compile one kernel after the other."""
LONGEST_PAUSE_S = FIRST_S
"""Only the first pause of the breaker is waited for: else a pusher would outlive its job by minutes, with files open
below the root. The markers stay for the next one."""
_LOOK_S = 0.2
_NICENESS = 10
_PASSING = ("unreachable", "rate-limited", "server", "bad-answer")
"""The kinds of failure that may be over soon; any other but ``timeout`` stays until somebody mends it."""
_PROBE_S = 30.0
_PATIENCE = Patience(in_all_s=120.0, silent_s=20.0)


def main() -> None:
    """Push what waits in the outbox of the root that is the only argument. Says nothing, and raises nothing."""
    (root,) = sys.argv[1:]
    settle_in()
    os.nice(_NICENESS)
    with suppress(GpuCacheError, OSError):
        push_waiting(root, configuration.environ(root=root))


def push_waiting(root: str, environ: Mapping[str, str]) -> None:
    """Push the entries of all markers, and those that come within `IDLE_S`; nothing where another process does so.

    ``root`` is absolute; ``environ`` names the remote, and the key.

    Raises:
        GpuCacheError: the root is not safe.
        OSError: the disk refused; the markers stay.
    """
    trust = Trust.for_launch(environ).in_root(root)
    vet(root, trust)
    for path in paths.our_directories(root):
        vet_child(path, trust)
    locks = LockPlace(root).directory()
    text = REMOTE.read(environ)
    if text is None:
        return
    breaker = push_breaker(locks, text)
    done: set[Marker] = set()
    goes_on = True
    while goes_on:
        with held(locks) as is_alone:
            if not is_alone:
                return
            goes_on = _pushed_all(root, environ, text, breaker, done)
        # A marker that was left while the lock was given up is nobody else's: who left it saw a pusher.
        goes_on = goes_on and bool(_undone(outbox.own(root), done))
    outbox.sweep(root)


def _undone(markers: list[Marker], done: set[Marker]) -> list[Marker]:
    """Those that this process has not done with: some disks let none be taken away."""
    return [marker for marker in markers if marker not in done]


def _pushed_all(
    root: str,
    environ: Mapping[str, str],
    text: str,
    breaker: Breaker,
    done: set[Marker],
) -> bool:
    """Push until nothing has waited for a while; False where the remote cannot be written for longer than a pause."""
    try:
        pushing = Pushing(root, RemoteUrl.parse(text), environ)
    except GpuCacheError as error:
        breaker.closed("unusable", printable(str(error)))
        return False
    seen = time.monotonic()
    others = outbox.of_others(root)
    while True:
        for marker in _undone(outbox.own(root) + others, done):
            if not _may_push(breaker):
                return False
            if pushing.push(marker, breaker):
                done.add(marker)
            seen = time.monotonic()
        if time.monotonic() - seen >= IDLE_S:
            return True
        time.sleep(_LOOK_S)


def _may_push(breaker: Breaker) -> bool:
    """Whether the remote may be written, after a pause where it has failed; False where that pause is too long."""
    while not breaker.allows(_PROBE_S):
        now = time.monotonic()
        state = breaker.read()
        until = max(state.closed_until, state.probed_until)
        if state.why == "unusable" or not 0 <= until - now <= LONGEST_PAUSE_S:
            return False
        time.sleep(until - now + 0.01)
    return True


class _Done(NamedTuple):
    """What came of one entry."""

    was_asked: bool
    """Whether the remote was asked at all."""
    sent_bytes: int
    """0 where there was nothing to put, or the remote had it."""


_NOTHING = _Done(was_asked=False, sent_bytes=0)


class Pushing:
    """What pushes the entries of one root to one remote, one by one."""

    def __init__(self, root: str, url: RemoteUrl, environ: Mapping[str, str]) -> None:
        """Raises `GpuCacheError` where the remote or the key cannot be used as things are set up."""
        self.root = root
        self.remote: Remote = open_remote(url, environ, _PATIENCE)
        self.signing = SigningKey.from_environ(environ)
        if self.signing is None and not url.is_by_owner:
            raise GpuCacheError("nothing can be signed", "set GPUCACHE_SIGN_KEY")
        self._pins = Staging(paths.ours(root, "tmp"))
        self._stats = Stats(paths.ours(root, "stats"), NO_DEVICE)

    def push(self, marker: Marker, breaker: Breaker) -> bool:
        """Give one entry to the remote, and take its marker away; return whether this process is done with it.

        Where the disk does not let the entry be read, or packed, the marker stays for the next pusher.
        """
        began = time.monotonic()
        try:
            did = self._pushed(marker.key)
        except RemoteError as error:
            self._failed(marker, error, breaker)
            return False
        except OSError:
            self._stats.add("push_errors", now=True)
            return True
        outbox.take_away(self.root, marker)
        if did.was_asked:
            breaker.answered()
        if did.sent_bytes:
            self._stats.add("pushed")
            self._stats.add("pushed_bytes", did.sent_bytes)
            self._stats.add("push_s", time.monotonic() - began, now=True)
        return True

    def _failed(self, marker: Marker, error: RemoteError, breaker: Breaker) -> None:
        self._stats.add("push_errors", now=True)
        if error.kind == "too-large":
            outbox.take_away(self.root, marker)  # it would never be taken
        elif error.kind == "timeout":
            breaker.closed("timeout", str(error))
        elif error.kind in _PASSING:
            breaker.failed(str(error))
        else:
            breaker.closed("unusable", str(error))

    def _pushed(self, key: str) -> _Done:
        """Put the entry of a key, unless there is nothing to put.

        Raises:
            RemoteError: the remote failed.
            OSError: the disk refused.
        """
        try:
            collected = collect(entry_path(self.root, key), self._pins)
        except NotCollected as error:
            if isinstance(error.__cause__, OSError):
                raise_unless_damage(error.__cause__)
            return _NOTHING  # it was removed, or is damaged: whoever compiles it again leaves a marker again
        try:
            return self._put(collected)
        except BadPack:
            return _NOTHING  # no reader would take it
        finally:
            collected.unpin()

    def _put(self, collected: Collected) -> _Done:
        try:
            sent = put_entry(self.remote, collected, self.signing, self._pins)
        except ValueError:
            return _NOTHING  # nobody could ask for it
        return _Done(was_asked=True, sent_bytes=sent or 0)
