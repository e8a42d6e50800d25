"""Count hits and misses: in memory, then in one small file for each process, which are summed when somebody asks.

A process rewrites its own file at a miss, at exit, and otherwise at most every two seconds, so that a process that is
killed or leaves through ``os._exit`` loses its last seconds only. Files of dead processes are folded into one file.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from gpucache.disk.door import COUNTERS_BYTES, SAFELY, read_limited
from gpucache.disk.locks import is_free, open_private
from gpucache.disk.node import DAY_S, is_of_this_node, node_id
from gpucache.forks import after_fork
from gpucache.layout import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Sums = dict[str, dict[str, float]]
    """By device directory: the sum of each counter."""
    Counter = Literal[
        "hits",
        "shared_hits",
        "misses",
        "waits",
        "errors_degraded",
        "waited_s",
        "compiled_s",
        "saved_s",
    ]

COUNTERS = ("hits", "shared_hits", "misses", "waits", "errors_degraded")
"""The names of what is counted in whole numbers."""
SECONDS = ("waited_s", "compiled_s", "saved_s")
"""The names of what is counted in seconds."""
_FLUSH_S = 2.0
_LENGTH = 2048  # more than the longest directory name, each byte of it escaped, with all counters
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MOST = 1e18
"""No counter gets so far: a larger number in a file is nonsense, and would spoil the sums."""
_FOLDED = "folded.json"
"""The file with the sums over processes that have ended, beside a file for each process."""


class Stats:
    """The counters of one process for one device; without a directory, only in memory. Any thread may count."""

    def __init__(self, directory: str | None, device: str) -> None:
        self.directory = directory
        self.device = device
        self._reset()
        _all.append(self)

    def _reset(self) -> None:
        self._mutex = threading.RLock()
        self._values: dict[str, float] = {}
        self._flushed = 0.0
        self._fd: int | None = None
        self._dirty = False
        self._written: dict[str, float] = {}

    def add(self, name: Counter, amount: float = 1, *, now: bool = False) -> None:
        """Add to a counter; with ``now``, or two seconds after the last time, the counters are written to the file."""
        with self._mutex:
            self._values[name] = self._values.get(name, 0) + amount
            self._dirty = True
        if now or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the counters to this process's file; where the disk refuses, they are tried again the next time."""
        with self._mutex:
            self._flushed = time.monotonic()
            if not self._dirty or self.directory is None:
                return
            try:
                self._leave_folded()
                if self._fd is None:
                    self._fd = _open(self.directory)
                said = {"device": self.device, "values": self._values}
                text = json.dumps(said).encode()
                # One write of one length: a reader sees it whole.
                os.pwrite(self._fd, text.ljust(_LENGTH), 0)
            except OSError:
                return
            self._dirty = False
            self._written = dict(self._values)

    def _leave_folded(self) -> None:
        """Begin a new file where another node has folded the old one, after a day of silence; nothing counts twice."""
        if self._fd is None or os.fstat(self._fd).st_nlink > 0:
            return
        os.close(self._fd)
        self._fd = None
        for name, written in self._written.items():
            self._values[name] -= written
        self._written = {}

    def forget(self) -> None:
        """In the child of a fork: start from nothing, leaving the parent's file and its lock alone."""
        if self._fd is not None:
            with suppress(OSError):
                os.close(self._fd)
        self._reset()


def _open(directory: str) -> int:
    """Make the file of this process, and hold it under ``flock`` for life, which tells that the process is alive.

    The file gets the name that a fold looks for only once it is locked, or it could be folded away before.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    name = f"{node_id()}.{paths.host_name()}.{os.getpid()}.{time.time_ns():x}"
    path = f"{directory}/{name}"
    fd = os.open(f"{path}.new", _NEW_FILE, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(f"{path}.new", f"{path}.json")
    except OSError:
        os.close(fd)
        with suppress(OSError):
            os.unlink(f"{path}.new")
        raise
    return fd


def totals(root: str) -> Sums:
    """The sum over all processes, living and dead, of each device directory's counters. Writes nothing."""
    directory = paths.ours(root, "stats")
    sums: Sums = {}
    with suppress(OSError), _no_fold_beside(directory):
        for path in _files(directory):
            _sum(sums, _read(path))
    return sums


@contextmanager
def _no_fold_beside(directory: str) -> Iterator[None]:
    """Keep folds out while the files are summed; where nobody has folded yet there is no lock, and none is made."""
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            stack.enter_context(_folding(directory, os.O_RDONLY))
        yield


def fold(root: str) -> int:
    """Fold the files of dead processes into one; return how many there were. Beside any writer and reader."""
    directory = paths.ours(root, "stats")
    if not os.path.isdir(directory):
        return 0
    with _folding(directory, os.O_RDONLY | os.O_CREAT):
        folded = f"{directory}/{_FOLDED}"
        # A process holds its file for life, so that a free one has its last values.
        dead = []
        for path in _files(directory):
            if path != folded and _is_dead(path):
                dead.append(path)
        if not dead:
            return 0
        sums: Sums = {}
        for path in (folded, *dead):
            _sum(sums, _read(path))
        said = []
        for device, values in sums.items():
            said.append({"device": device, "values": values})
        # One name: what a killed or refused fold left is written over.
        temporary = f"{directory}/folding"
        with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
            json.dump(said, file)
        # The sum first: killed between these two, the dead are counted twice; the other way round they would be lost.
        os.rename(temporary, folded)
        for path in dead:
            os.unlink(path)
    return len(dead)


def _is_dead(path: str) -> bool:
    """Whether the process is gone whose counters these are, by its lock; of another node's, by a day of silence.

    No lock of another node's may be seen here.
    """
    if is_of_this_node(os.path.basename(path)):
        return is_free(path)
    try:
        return time.time() - os.lstat(path).st_mtime > DAY_S
    except OSError:
        return False  # gone


@contextmanager
def _folding(directory: str, flags: int) -> Iterator[None]:
    """Hold the directory's lock: folding and summing exclude each other, or the dead would be summed twice or never."""
    fd = os.open(f"{directory}/lock", flags | SAFELY, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _files(directory: str) -> list[str]:
    """The paths of all files with counters, those of the dead included."""
    found = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            found.append(f"{directory}/{name}")
    return found


def _read(path: str) -> list[dict[str, object]]:
    """Read the counters in a file: a process's, of one device, or the folded ones, of each; none where it is torn."""
    try:
        found = json.loads(read_limited(path, COUNTERS_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, dict)]


def _sum(sums: Sums, found: list[dict[str, object]]) -> None:
    """Add what was read of one file to the sums, device by device; what makes no sense is left out."""
    for item in found:
        values = item.get("values")
        device_name = item.get("device")
        if not isinstance(values, dict) or not isinstance(device_name, str):
            continue
        device = sums.setdefault(device_name, {})
        for name, value in values.items():
            known = name in COUNTERS or name in SECONDS
            if known and isinstance(value, (int, float)) and 0 <= value < _MOST:
                before = device.get(name, 0)
                device[name] = before + value


_all: list[Stats] = []


def _flush_all() -> None:
    for stats in _all:
        stats.flush()


@after_fork
def _after_fork_in_child() -> None:
    for stats in _all:
        stats.forget()


atexit.register(_flush_all)
