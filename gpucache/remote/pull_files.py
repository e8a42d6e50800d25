"""The files of pulls: by which this node knows which keys each pull of this user brings, and that the pull is alive.

Such a file lies beside the locks. Whoever pulls (`remote.pulls`) holds it under ``flock`` and touches it as bytes come;
whoever misses a key reads it (`remote.awaited`). It is a head of 4,096 bytes, JSON and blanks (`disk.locks.holder`
reads it too), and then a digest of 16 bytes for each key, sorted. It is a hint and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from typing import NamedTuple

from gpucache.disk.door import HOLDER_BYTES, open_regular
from gpucache.disk.lock_place import LockPlace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Literal

    Kind = Literal["failed", "older", "unfit"]
    """Of a pull that is over: it has failed; it has brought an older pack than one that was seen before; nothing of it
    is for this node."""
    Phase = Literal["starting", "asking", "bringing"] | Kind
    """``starting``: the puller comes up; ``asking``: the remote has not yet said which keys there are."""

PULL = "pull-"
"""How the name of a pull's file begins."""
DIGEST_BYTES = 16
MOST_KEYS = 2**20
MOST_SHOWN = 256
MOST_WHY = 1024
_SUFFIX = ".lock"
KINDS: tuple[Kind, ...] = ("failed", "older", "unfit")


class Remark(NamedTuple):
    """What the file of a pull that is over says to people."""

    path: str
    what: str
    """What was pulled, as people call it."""
    kind: Kind
    why: str
    since: float
    """When the pull was over, in seconds since the epoch."""

    @property
    def text(self) -> str:
        """All of it in words."""
        failed = " failed" if self.kind == "failed" else ""
        return f"{self.what}{failed}: {self.why}"


def pull_path(root: str, words: Iterable[str]) -> str:
    """The path of the file of a pull into this root by this user.

    Raises:
        OSError, UnsafeDirectoryError: there can be no directory for locks (`LockPlace.directory`).
    """
    known = "\0".join([*words, str(os.geteuid())]).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(known, digest_size=8).hexdigest()
    return f"{LockPlace(root).directory()}/{PULL}{digest}{_SUFFIX}"


def digest_of(key: str) -> bytes:
    """What stands for a key of the store in the file."""
    return hashlib.blake2b(
        key.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES
    ).digest()


def parsed_head(head: bytes) -> dict[str, Any] | None:
    """What a head says; None where it is torn, as a head is that is being written."""
    try:
        said = json.loads(head)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def remarks(directory: str) -> list[Remark]:
    """What the files of pulls say that are over, in a directory of locks, by path. Never raises."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(directory)):
            if name.startswith(PULL):
                remark = _remark_at(f"{directory}/{name}")
                if remark is not None:
                    found.append(remark)
    return found


def _remark_at(path: str) -> Remark | None:
    """What the file of a pull says that is over; None where that says nothing, or is not there. Never raises."""
    try:
        fd, found = open_regular(path)
    except OSError:
        return None
    try:
        return remark_in(fd, path, found)
    except OSError:
        return None
    finally:
        os.close(fd)


def remark_in(fd: int, path: str, found: os.stat_result) -> Remark | None:
    """What an open file says to people; None where the pull is not over, or has nothing to say.

    Raises:
        OSError: the disk refused.
    """
    said = parsed_head(os.pread(fd, HOLDER_BYTES, 0)) or {}
    what, why = said.get("what"), said.get("why")
    if type(what) is not str or type(why) is not str:
        return None
    for kind in KINDS:
        if said.get("phase") == kind:
            return Remark(path, what[:MOST_SHOWN], kind, why[:MOST_WHY], found.st_mtime)
    return None


class Rest:
    """For how long a file has not been touched, by the node's clock, which can be set, and by this process's own."""

    def __init__(self) -> None:
        self._touched: float | None = None
        self._since = 0.0

    def is_longer(self, touched: float, limit_s: float) -> bool:
        """Whether the file has not been touched for longer, whose time is ``touched`` now; to be asked again."""
        now = time.monotonic()
        if touched != self._touched:
            self._touched, self._since = touched, now
        return time.time() - touched > limit_s or now - self._since > limit_s
