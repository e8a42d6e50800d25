"""What a rank does with a kernel that it has compiled, where the remote is written: leave a marker, start a pusher.

A rank reads no key, asks no remote and waits for nothing: a marker is an empty file, and a pusher is started by one of
the node's ranks when none runs.
"""

from __future__ import annotations

import os
import time

from gpucache import environment
from gpucache.configuration import for_child
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.spawning import python_command, reap, start_beside, start_detached
from gpucache.errors import GpuCacheError
from gpucache.log import warn_once
from gpucache.remote.outbox import LEAST_COMPILE_S, leave
from gpucache.remote.pusher_lock import is_to_start, push_breaker
from gpucache.remote.url import RemoteUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PUSHER = "gpucache.remote.pusher"
"""The module whose ``main`` is a pusher; its one argument is the root."""
_LEAVES_S = 0.2
"""For so long a pusher is waited for to be nobody's child, as a rule a few milliseconds: a program may wait for any."""
_LATER = "`gpucache push` can push it later"
_WAY_OUT = "set it to the file that `gpucache keygen` wrote, or leave mode=write out"


class WriteBehind:
    """Where one root's kernels go after they were compiled. Any thread may call."""

    def __init__(self, root: str, locks: LockPlace, url: str, environ: Mapping[str, str]) -> None:
        self.root = root
        self.locks = locks
        self._url = url
        self._environ = environ

    def compiled(self, key: str, compile_s: float) -> None:
        """An entry of this key is in the store, after a compile of so many seconds. Fails softly, told once."""
        if compile_s < LEAST_COMPILE_S:
            return
        try:
            leave(self.root, key)
            self.wake()
        except (GpuCacheError, OSError) as error:
            warn_once("a kernel cannot be put down for the remote", error, _LATER)

    def wake(self) -> None:
        """Start a pusher, unless one runs, or the remote could not be written just now.

        Raises:
            GpuCacheError, OSError: the disk refused, or no process can be made.
        """
        if self._is_to_start():
            start_beside(PUSHER, [self.root], self._environ)
            reap(_LEAVES_S)

    def wake_ahead(self) -> None:
        """As `wake`, for a process with one thread that is about to become a program.

        Raises:
            GpuCacheError, OSError: as there.
        """
        if self._is_to_start():
            start_detached(python_command(PUSHER, self.root), self._environ)

    def _is_to_start(self) -> bool:
        locks = self.locks.directory()
        allows = push_breaker(locks, self._url).read().allows(time.monotonic())
        return allows and is_to_start(locks)


def write_behind(root: str, locks: LockPlace, environ: Mapping[str, str]) -> WriteBehind | None:
    """What pushes this root's new entries; None where there is no remote to write. Never raises.

    The key that signs is not looked at: only the pusher reads it.
    """
    url = RemoteUrl.for_launch(environ)
    if url is None or url.mode != "write":
        return None
    signing = environment.SIGN_KEY.read_or_default(environ)
    if signing is None and not url.is_by_owner:
        warn_once("nothing is pushed", f"{environment.SIGN_KEY} is not set", _WAY_OUT)
        return None
    told = dict(for_child(environ))
    if signing is not None:
        # A pusher is in another directory.
        told[environment.SIGN_KEY.name] = os.path.abspath(signing)
    return WriteBehind(root, locks, url.text, told)
