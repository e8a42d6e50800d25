"""`Awaited`: whether a pull of this node may still bring a key that a process misses.

Such a process waits for the entry as for the holder of a key's lock. Whoever waited in vain goes on as if there were no
pull.
"""

from __future__ import annotations

import os
from bisect import bisect_left

from gpucache.disk.door import HOLDER_BYTES, open_regular
from gpucache.disk.locks import is_free_descriptor, let_go
from gpucache.remote.pull_files import (
    DIGEST_BYTES,
    MOST_KEYS,
    PULL,
    Rest,
    digest_of,
    parsed_head,
    remark_in,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.remote.pull_files import Remark

ASK_S = 5.0
"""For so long after the last byte a statement is waited for, whose keys nobody knows yet."""
_rests: dict[tuple[str, int], Rest] = {}
"""By path of a file and its inode, for all keys of this process: else each would wait for a pull that stands still."""


class Awaited:
    """One key of the store, for a process that misses it: whether a pull of this node may still bring the entry."""

    def __init__(self, directory: str, key: str, stall_s: float) -> None:
        """``directory`` is that of the root's locks; ``stall_s`` is for how long a pull may show no life."""
        self.coming: str | None = None
        """The path of the file of the pull that may bring the key, as `is_coming` has seen it last."""
        self.stalled: str | None = None
        """The path of a pull's file that has stood still for as long while this process looked."""
        self._directory = directory
        self._digest = digest_of(key)
        self._stall_s = stall_s
        self._has_lived: set[str] = set()
        """The names of the files of pulls that have shown life to this object."""
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
                remark = remark_in(fd, f"{self._directory}/{name}", found)
                if remark is not None:
                    self.over[remark.path] = remark
                return False
            said = parsed_head(os.pread(fd, HOLDER_BYTES, 0)) or {}
            limit_s = self._stall_s
            if said.get("phase") == "asking":
                limit_s = min(ASK_S, limit_s)
            if self._has_stalled(name, found, limit_s):
                return False
            if said.get("phase") != "bringing":
                return True
            return self._is_among(fd, name, found, said.get("keys"))
        except OSError:
            return False
        finally:
            let_go(fd)

    def _has_stalled(self, name: str, found: os.stat_result, limit_s: float) -> bool:
        """Whether a file has not been touched for the limit. Notes a pull that has shown life to this object before."""
        path = f"{self._directory}/{name}"
        rest = _rests.setdefault((path, found.st_ino), Rest())
        if not rest.is_longer(found.st_mtime, limit_s):
            self._has_lived.add(name)
            return False
        if name in self._has_lived:
            self.stalled = path
        return True

    def _is_among(self, fd: int, name: str, found: os.stat_result, count: object) -> bool:
        if type(count) is not int or not 0 <= count <= MOST_KEYS:
            return False
        known = (name, found.st_ino, count)
        if known not in self._answers:
            digests = _Digests(os.pread(fd, count * DIGEST_BYTES, HOLDER_BYTES))
            place = bisect_left(digests, self._digest)
            self._answers[known] = place < len(digests) and digests[place] == self._digest
        return self._answers[known]


class _Digests:
    """The digests behind the head of a file, as a sequence."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // DIGEST_BYTES

    def __getitem__(self, number: int) -> bytes:
        begin = number * DIGEST_BYTES
        return self._data[begin : begin + DIGEST_BYTES]
