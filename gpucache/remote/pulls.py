"""A pull of this process: while it goes on, others of this node wait for what it brings instead of compiling that.

Whoever pulls holds a file (`remote.pull_files`) under ``flock``, so that its death ends the pull for all who wait, and
touches the file as bytes come. A pull whose file has stood still for the stall limit is waited for by nobody.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress

from gpucache.disk.door import HOLDER_BYTES
from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import give_up, let_go, signature, take
from gpucache.remote.pull_files import (
    MOST_KEYS,
    MOST_SHOWN,
    MOST_WHY,
    Rest,
    digest_of,
    parsed_head,
    pull_path,
    remark_in,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from gpucache.remote.pull_files import Kind, Phase, Remark

_LOOK_S = 0.05
_BEAT_S = 0.1
_BEAT_BYTES = 32 * 1024
"""So many bytes are a beat. A server that drips ten at a time shows no life."""


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
                pull.before = remark_in(fd, path, os.fstat(fd))
            os.ftruncate(fd, 0)
            pull._write_head("starting", 0, what)
        except BaseException:
            pull.end()  # whoever found it locked would wait for a pull that there is not
            raise
        return pull

    def fileno(self) -> int:
        """The descriptor by which the pull is held: a process that inherits it goes on with the pull."""
        return self._fd

    def sign(self) -> None:
        """Have the file name this process, which has taken over what another one began. Never raises."""
        with suppress(OSError):
            self._write_head("starting", 0)

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
        digests = sorted(map(digest_of, keys))[:MOST_KEYS]
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
            self._write_head(kind, 0, why=why[:MOST_WHY])
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
            said = parsed_head(os.pread(self._fd, HOLDER_BYTES, 0)) or {}
            what = str(said.get("what", "a pull"))
        said = json.loads(signature(what[:MOST_SHOWN]))
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
    rest = Rest()
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


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
