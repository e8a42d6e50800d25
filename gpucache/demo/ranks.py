"""The ranks of the demo: started together, released together, and what they say while they compile."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TextIO

from gpucache.demo.place import Place
from gpucache.disk.spawning import python_command
from gpucache.errors import GpuCacheError, ProvisionError
from gpucache.values import Value

_MOST_STDERR = 4096
_LEAST_FREE = 2**20
"""A file system with fewer free bytes has no room for what one rank writes."""
_Said = SimpleQueue[tuple[int, Any]]
"""What ranks have said, with the rank; None is the end of what that rank says."""


class Kernel(Value):
    """One kernel that a rank has now."""

    rank: int
    kernel: str
    compiled: bool
    """Whether this rank has compiled it, or else taken it from the cache."""
    seconds: float


class Round(Value):
    """What all ranks together did with one kind of cache."""

    compiles: int
    taken: int
    """Kernels that a rank had without compiling."""
    cpu_s: float
    """Processor time of all ranks, from their start together on."""
    wall_s: float
    """From their start together, all with Triton imported, until the last had its last kernel."""
    bytes: int
    """What lies on the disk then, in bytes; hard links count once."""
    target: str
    triton: str


class RankError(GpuCacheError, RuntimeError):
    """A rank of the demo ended before it had all kernels."""

    def __init__(self, rank: int, code: int | None, last_line: str) -> None:
        how = "was killed" if code is None or code < 0 else f"ended with {code}"
        problem = f"rank {rank} of the demo {how}: {last_line or 'without a word'}"
        hint = "`python -c 'import triton'` with this Python tells whether Triton works"
        super().__init__(problem, hint, rank, code, last_line)
        self.rank = rank
        self.code = code
        self.last_line = last_line


def compile_in_ranks(
    place: Place,
    name: str,
    environs: list[dict[str, str]],
    count: int,
    show: Callable[[Kernel], None],
) -> Round:
    """Have a rank for each environment compile the first ``count`` kernels, all at once; ``show`` is told of each.

    The caches of these environments lie in the directory ``name`` of the place. Whatever ends this call ends the ranks.

    Raises:
        RankError: a rank ended early.
        ProvisionError: a rank ended early, and the disk is full.
        OSError: no process can be started.
    """
    said: _Said = SimpleQueue()
    with _started(place, name, environs, count, said) as ranks:
        for _ in ranks:
            _next(said, ranks, place, name)
        began = time.monotonic()
        for process in ranks:
            with suppress(OSError):  # that it has ended is said by itself
                process.stdin.write("\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
        ends: list[dict[str, Any]] = []
        compiles = 0
        while len(ends) < len(ranks):
            rank, value = _next(said, ranks, place, name)
            if "kernel" in value:
                compiles += value["compiled"]
                show(Kernel(rank, **value))
            else:
                ends.append(value)
        wall_s = time.monotonic() - began
    return Round(
        compiles=compiles,
        taken=len(ranks) * count - compiles,
        cpu_s=sum(end["cpu_s"] for end in ends),
        wall_s=wall_s,
        bytes=_bytes_in(os.path.join(place.path, name)),
        target=ends[0]["target"],
        triton=ends[0]["triton"],
    )


@contextmanager
def _started(
    place: Place, name: str, environs: list[dict[str, str]], count: int, said: _Said
) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks; they are killed in the end, if they have not ended."""
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank, environ in enumerate(environs):
            process, lines = _start(place, _stderr_of(place, name, rank), environ, count)
            ranks.append(process)
            listener = threading.Thread(target=_listen, args=(lines, rank, said), daemon=True)
            listener.start()
        yield ranks
    finally:
        for process in ranks:
            process.stdin.close()  # type: ignore[union-attr]
            process.kill()
        for process in ranks:
            process.wait()


def _start(
    place: Place, stderr: str, environ: Mapping[str, str], count: int
) -> tuple[subprocess.Popen[str], TextIO]:
    """Start a rank in a session of its own: an interrupt on the terminal is for this process, which ends the ranks.

    Returns what the rank says, too.
    """
    readable, writable = os.pipe()
    lines = os.fdopen(readable)
    try:
        with open(stderr, "wb") as errors:
            process = subprocess.Popen(
                python_command("gpucache.demo.rank", str(count), str(writable)),
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                pass_fds=(place.kept_open, writable),
                start_new_session=True,
            )
    except OSError:
        lines.close()
        raise
    finally:
        os.close(writable)
    return process, lines


def _listen(lines: TextIO, rank: int, said: _Said) -> None:
    """Pass on what a rank says, and that it has ended, where that comes before its last word."""
    value: Any = None
    with lines:
        for line in lines:
            value = json.loads(line)
            said.put((rank, value))
    if value is None or "cpu_s" not in value:
        said.put((rank, None))


def _next(
    said: _Said, ranks: list[subprocess.Popen[str]], place: Place, name: str
) -> tuple[int, Any]:
    """What a rank says next.

    Raises:
        RankError: a rank has ended, and had more to say.
        ProvisionError: a rank has, and the disk is full: what the rank said of that may have found no room either.
    """
    rank, value = said.get()
    if value is None and _is_full(place.path):
        hint = "make room (`df -h` and `df -i` tell what is full), or set TMPDIR to a directory elsewhere"
        raise ProvisionError(place.path, errno.ENOSPC, hint, "write")
    if value is None:
        code = ranks[rank].wait()
        raise RankError(rank, code, _last_line(_stderr_of(place, name, rank)))
    return rank, value


def _is_full(directory: str) -> bool:
    """Whether a directory's file system has too little room, or too few inodes where it counts them."""
    disk = os.statvfs(directory)
    has_no_inode = disk.f_files > 0 and disk.f_favail == 0
    return has_no_inode or disk.f_bavail * disk.f_frsize < _LEAST_FREE


def _stderr_of(place: Place, name: str, rank: int) -> str:
    return os.path.join(place.path, f"{name}-{rank}.stderr")


def _last_line(path: str) -> str:
    """The last line of what a rank said on stderr, which mostly is the error."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MOST_STDERR))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _bytes_in(directory: str) -> int:
    sizes = {}
    for above, _, names in os.walk(directory):
        for name in names:
            found = os.lstat(os.path.join(above, name))
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())
