"""Kill a process before each system call by which it changes the disk or a lock, and look at what is left.

A first run under strace finds the calls between two marks that the script makes (`SCRIPT`). Each further run starts
from a new tree and is killed by strace right before one of these calls, which is then compared with that of the first
run: a kill in the wrong place would prove nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from support.processes import BARE, INTERPRETER, PATIENCE_S

SCRIPT = """
import json, os, sys
def mark(name):
    try:
        os.rmdir("/gpucache-marker-" + name)
    except FileNotFoundError:
        pass
"""
"""How a script begins that is to be killed: it calls `mark` with "begin" and with "end"."""

# What changes the disk, or a lock ("?": not on every architecture).
CHANGING = (
    "?mkdir,?mkdirat,?open,openat,?creat,write,?pwrite64,?writev,fsync,?fdatasync,?rename,?renameat,?renameat2,flock,"
    "?link,?linkat,?symlink,?symlinkat,?unlink,?unlinkat,?rmdir,?chmod,fchmod,?fchmodat,?chown,fchown,?fchownat,"
    "?truncate,ftruncate,?utimensat"
)

Start = Callable[[Path], list[object]]
Check = Callable[[Path, str], None]


class Call(NamedTuple):
    """A system call in a trace."""

    name: str
    number: int
    """Which of the thread's calls of that name it is, from 1: so strace counts."""
    line: str

    @property
    def changes(self) -> bool:
        """Whether it changes the disk or a lock; to open for reading does not."""
        flags = ("O_CREAT", "O_TRUNC", "O_WRONLY", "O_RDWR")
        return self.name not in ("open", "openat") or any(flag in self.line for flag in flags)


class EveryCall:
    """Traces scripts, and kills them, each run in a new directory below ``base``."""

    def __init__(self, strace: str, base: Path) -> None:
        self._strace = strace
        self._base = base

    def changes(self, script: str, start: Start, name: str = "once") -> list[Call]:
        """Run the script without a kill; its calls between the marks that change the disk or a lock.

        ``start`` makes the tree in a directory and says the script's arguments, which follow that directory.
        """
        done, calls = self._traced(self._base / name, script, start, "-e", f"trace={CHANGING}")
        assert done.returncode == 0, done.stderr
        begin, end = (
            number for number, call in enumerate(calls) if "gpucache-marker-" in call.line
        )
        assert "gpucache-marker-begin" in calls[begin].line
        return [call for call in calls[begin + 1 : end] if call.changes]

    def killed_everywhere(
        self, script: str, start: Start, check: Check, least: int, once: Collection[str] = ()
    ) -> set[str]:
        """Kill the script before each of its changing calls, each time in a new tree; the names of these calls.

        ``start`` is that of `changes`; ``check`` looks at the directory that a kill left, and is told the call's line.
        There must be ``least`` calls. Of those whose name is in ``once``, the first stands for all.
        """
        points = self.changes(script, start)
        firsts = {call.name: call for call in reversed(points)}
        points = [call for call in points if call.name not in once or call is firsts[call.name]]
        assert len(points) >= least

        def kill(point: Call) -> Path:
            home = self._base / f"{point.name}-{point.number}"
            inject = f"inject={point.name}:signal=KILL:when={point.number}"
            done, calls = self._traced(
                home, script, start, "-e", f"trace={point.name}", "-e", inject
            )
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (point, done)
            assert alike(calls[-1].line, home) == alike(point.line, self._base / "once"), (
                "another call was hit"
            )
            return home

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for home, point in zip(pool.map(kill, points), points, strict=True):
                check(home, point.line)
        return set(firsts)

    def _traced(
        self, home: Path, script: str, start: Start, *options: str
    ) -> tuple[subprocess.CompletedProcess[bytes], list[Call]]:
        """Run the script; the calls of its first thread, which does the work: another one beats for its locks."""
        home.mkdir()
        words, log = start(home), home / "log"
        # Whole strings: a cut one ends elsewhere where a number before the cut has one digit more.
        command = [self._strace, "-f", "-s", "4096", "-o", log, *options]
        command += [INTERPRETER, "-S", "-c", script, home, *map(str, words)]
        done = subprocess.run(
            command, env=BARE, capture_output=True, check=False, timeout=PATIENCE_S
        )
        lines = log.read_text().splitlines()
        log.unlink()
        seen: Counter[str] = Counter()
        calls = []
        for line in lines:
            match = re.match(r"(\d+) +(\w+)\(", line)
            if match is not None and match[1] == lines[0].split()[0]:
                seen[match[2]] += 1
                calls.append(Call(match[2], seen[match[2]], line))
        return done, calls


def alike(line: str, home: Path) -> str:
    """A line of the trace without its result and what differs from run to run: numbers, digests, random names."""
    line = re.sub(r"(\)? += .*| <unfinished \.\.\.>)$", "", line).replace(str(home), "HOME")
    # a time that strace spells out, with a fraction or without
    line = re.sub(r"/\*.*?\*/", "", line)
    line = re.sub(
        r"(publish-|gpucache-new-|gpucache-staging-|tmp\.gpucache-)[\w.-]+|[0-9a-f]{8,}|\d+",
        "?",
        line,
    )
    return " ".join(line.split())  # strace pads short pids
