"""Pulls in progress on this node: a file beside the locks says which keys each of them brings, and that it is alive.

Whoever pulls holds the file under ``flock``, so that its death ends the pull for all who wait, and touches the file as
bytes come. A process that misses a key of such a pull waits for the entry as for the holder of a key's lock: `Awaited`
says how long that makes sense. A pull whose file has stood still for the stall limit is waited for by nobody.

The file is a head of 4,096 bytes, JSON and blanks (`disk.locks.holder` reads it too), and then a digest of 16 bytes for
each key, sorted. It is a hint and no more: whoever waited in vain goes on as if there were no pull.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from bisect import bisect_left
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gpucache.disk.door import HOLDER_BYTES, open_regular
from gpucache.disk.lock_place import LockPlace, open_lock_directory
from gpucache.disk.locks import give_up, is_free_descriptor, let_go, signature, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Literal

    Kind = Literal["failed", "older", "unfit"]
    """Of a pull that is over: it has failed; it has brought an older pack than one that was seen before; nothing of it
    is for this node."""
    Phase = Literal["starting", "asking", "bringing"] | Kind
    """``starting``: the puller comes up; ``asking``: the remote has not yet said which keys there are."""

PULL = "pull-"
"""How the name of a pull's file begins."""
ASK_S = 5.0
"""For so long after the last byte a statement is waited for, whose keys nobody knows yet."""
_SUFFIX = ".lock"
_DIGEST_BYTES = 16
_MOST_KEYS = 2**20
_LOOK_S = 0.05
_BEAT_S = 0.1
_BEAT_BYTES = 32 * 1024
"""So many bytes are a beat. A server that drips ten at a time shows no life."""
_MOST_SHOWN = 256
_MOST_WHY = 1024


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
        return (
            f"{self.what} failed: {self.why}"
            if self.kind == "failed"
            else f"{self.what}: {self.why}"
        )


class Pull:
    """A pull of this process, from the moment in which its file is locked until `end`. One thread at a time."""

    def __init__(self, fd: int, path: str) -> None:
        """Take over an open and locked file, as `begin` has made it here or in the process that started this one."""
        self._fd = fd
        self.path = path
        self.before: Remark | None = None
        """What the same pull had left for people before this one began."""
        self._bytes = 0
        self._beaten = time.monotonic()

    @classmethod
    def begin(cls, root: str, words: Iterable[str], what: str) -> Pull | None:
        """Begin a pull into a root; None where another process of this node is at the same pull.

        ``words`` tell the same pull from others (remote, name of the pack), and ``what`` says it to people.

        Raises:
            OSError, UnsafeDirectoryError: there can be no file among the locks.
        """
        path = pull_path(root, words)
        here = open_lock_directory(os.path.dirname(path))
        try:
            fd = take(here, os.path.basename(path), empties=False)
        except OSError as error:
            error.filename = path  # for people, who do not know what is open
            raise
        finally:
            os.close(here)
        if fd is None:
            return None
        pull = cls(fd, path)
        try:
            with suppress(OSError):
                pull.before = _remark_in(fd, path, os.fstat(fd))
            os.ftruncate(fd, 0)
            pull._write_head("starting", 0, what)
        except BaseException:
            pull.end()  # whoever found it locked would wait for a pull that there is not
            raise
        return pull

    def fileno(self) -> int:
        """The descriptor by which the pull is held: a process that inherits it goes on with the pull."""
        return self._fd

    def hand_over(self) -> None:
        """Close this process's descriptor after another process has inherited it, and with it the pull."""
        os.close(self._fd)

    def ask(self) -> None:
        """Tell that the remote is asked from now on."""
        self._write_head("asking", 0)

    def bring(self, keys: Iterable[str]) -> None:
        """Tell which keys of the store are coming. Those beyond a million are not waited for.

        Raises:
            OSError: the disk refused; nobody waits for a key.
        """
        digests = sorted(map(_digest, keys))[:_MOST_KEYS]
        _write(self._fd, b"".join(digests), HOLDER_BYTES)
        self._write_head("bringing", len(digests))

    def came(self, size_bytes: int) -> None:
        """Count bytes that have come, and beat if there were enough since the last beat."""
        self._bytes += size_bytes
        if self._bytes >= _BEAT_BYTES:
            self.beat()

    def beat(self) -> None:
        """Show those who wait that the pull goes on; at most ten times a second."""
        now = time.monotonic()
        if now - self._beaten < _BEAT_S:
            return
        self._bytes, self._beaten = 0, now
        with suppress(OSError):  # those who wait then go on, which is safe
            os.utime(self._fd)

    def leave(self, kind: Kind, why: str) -> None:
        """Free the lock, and leave the file with what people should know, for `remarks` to tell. Never raises."""
        with suppress(OSError):
            self._write_head(kind, 0, why=why[:_MOST_WHY])
        let_go(self._fd)

    def end(self) -> None:
        """Remove the file and free its lock, in this order: whoever has opened it meanwhile sees that. Never raises."""
        directory, name = os.path.split(self.path)
        try:
            here = open_lock_directory(directory)
        except OSError:
            let_go(self._fd)
            return
        give_up(self._fd, here, name)
        os.close(here)

    def _write_head(
        self, phase: Phase, keys: int, what: str | None = None, why: str | None = None
    ) -> None:
        said: dict[str, Any] = {}
        if what is None:
            said = _parsed(os.pread(self._fd, HOLDER_BYTES, 0)) or {}
            what = str(said.get("what", "a pull"))
        said = json.loads(signature(what[:_MOST_SHOWN]))
        said |= {"phase": phase, "keys": keys}
        if why is not None:
            said["why"] = why
        _write(self._fd, json.dumps(said).encode().ljust(HOLDER_BYTES), 0)


@contextmanager
def pulling(
    root: str,
    words: Sequence[str],
    what: str,
    stall_s: float,
    on_wait: Callable[[str], object],
) -> Iterator[Pull | None]:
    """Be at a pull for the length of a ``with`` block; ``words`` and ``what`` are as for `Pull.begin`.

    While another process is at the same one, this waits for that process, told once by ``on_wait`` with the path of the
    file, as long as the other shows life within ``stall_s``: what it brings need not come again. Then there are two
    pulls, and the block is given None, as where there can be no such file.
    """
    pull = None
    with suppress(OSError):
        pull = _begun_after_others(root, words, what, stall_s, on_wait)
    try:
        yield pull
    finally:
        if pull is not None:
            pull.end()


def _begun_after_others(
    root: str,
    words: Sequence[str],
    what: str,
    stall_s: float,
    on_wait: Callable[[str], object],
) -> Pull | None:
    path = pull_path(root, words)
    has_told = False
    rest = _Rest()
    while True:
        pull = Pull.begin(root, words, what)
        if pull is not None:
            return pull
        try:
            if rest.is_longer(os.stat(path).st_mtime, stall_s):
                return None
        except FileNotFoundError:
            continue  # it has just ended
        if not has_told:
            on_wait(path)
            has_told = True
        time.sleep(_LOOK_S)


def pull_path(root: str, words: Iterable[str]) -> str:
    """The path of the file of a pull into this root by this user.

    Raises:
        OSError, UnsafeDirectoryError: there can be no directory for locks (`LockPlace.directory`).
    """
    known = "\0".join([*words, str(os.geteuid())]).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(known, digest_size=8).hexdigest()
    return f"{LockPlace(root).directory()}/{PULL}{digest}{_SUFFIX}"


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _digest(key: str) -> bytes:
    return hashlib.blake2b(
        key.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES
    ).digest()


def _parsed(head: bytes) -> dict[str, Any] | None:
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
        return _remark_in(fd, path, found)
    except OSError:
        return None
    finally:
        os.close(fd)


def _remark_in(fd: int, path: str, found: os.stat_result) -> Remark | None:
    said = _parsed(os.pread(fd, HOLDER_BYTES, 0)) or {}
    what, why = said.get("what"), said.get("why")
    if type(what) is not str or type(why) is not str:
        return None
    for kind in KINDS:
        if said.get("phase") == kind:
            return Remark(path, what[:_MOST_SHOWN], kind, why[:_MOST_WHY], found.st_mtime)
    return None


# ---- those who wait


class Awaited:
    """One key of the store, for a process that misses it: whether a pull of this node may still bring the entry."""

    def __init__(self, directory: str, key: str, stall_s: float) -> None:
        """``directory`` is that of the root's locks; ``stall_s`` is for how long a pull may show no life."""
        self.coming: str | None = None
        """The path of the file of the pull that may bring the key, as `is_coming` has seen it last."""
        self.stalled: str | None = None
        """The path of a pull's file that has stood still for as long while this process looked."""
        self._directory = directory
        self._digest = _digest(key)
        self._stall_s = stall_s
        self._rests: dict[str, _Rest] = {}
        """By name of a file."""
        self.over: dict[str, Remark] = {}
        """By path of its file what was found of each pull that is over."""
        self._answers: dict[tuple[str, int, int], bool] = {}
        """By file, its inode and the number of its keys: whether the key is among them."""

    def is_coming(self) -> bool:
        """Whether a pull is alive that brings the key, or cannot tell yet which keys it brings. Never raises."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return False
        for name in names:
            if name.startswith(PULL) and self._brings(name):
                self.coming = f"{self._directory}/{name}"
                return True
        return False

    def _brings(self, name: str) -> bool:
        try:
            fd, found = open_regular(f"{self._directory}/{name}")
        except OSError:
            return False  # it is over, or another user's
        try:
            if is_free_descriptor(fd):
                remark = _remark_in(fd, f"{self._directory}/{name}", found)
                if remark is not None:
                    self.over[remark.path] = remark
                return False
            said = _parsed(os.pread(fd, HOLDER_BYTES, 0)) or {}
            limit_s = self._stall_s
            if said.get("phase") == "asking":
                limit_s = min(ASK_S, limit_s)
            if self._has_stalled(name, found.st_mtime, limit_s):
                return False
            if said.get("phase") != "bringing":
                return True
            return self._is_among(fd, name, found, said.get("keys"))
        except OSError:
            return False
        finally:
            let_go(fd)

    def _has_stalled(self, name: str, touched: float, limit_s: float) -> bool:
        """Whether a file has not been touched for the limit. Notes a pull that has shown life to this object before."""
        is_known = name in self._rests
        rest = self._rests.setdefault(name, _Rest())
        if not rest.is_longer(touched, limit_s):
            return False
        if is_known:
            self.stalled = f"{self._directory}/{name}"
        return True

    def _is_among(self, fd: int, name: str, found: os.stat_result, count: object) -> bool:
        if type(count) is not int or not 0 <= count <= _MOST_KEYS:
            return False
        known = (name, found.st_ino, count)
        if known not in self._answers:
            digests = _Digests(os.pread(fd, count * _DIGEST_BYTES, HOLDER_BYTES))
            place = bisect_left(digests, self._digest)
            self._answers[known] = place < len(digests) and digests[place] == self._digest
        return self._answers[known]


class _Rest:
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


class _Digests:
    """The digests behind the head of a file, as a sequence."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // _DIGEST_BYTES

    def __getitem__(self, number: int) -> bytes:
        begin = number * _DIGEST_BYTES
        return self._data[begin : begin + _DIGEST_BYTES]
