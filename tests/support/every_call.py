"""Kill a process before each system call by which it changes the disk or a lock, and look at what is left.

A first run under strace finds the calls between two marks that the script makes (`SCRIPT`). Each further run starts
from a new tree and is killed by strace right before one of these calls, which is then compared with that of the first
run: a kill in the wrong place would prove nothing. A process of each run is forked from one that has made the script's
imports, and strace is attached at the first mark: what a run does before it is not of interest, and slow to trace.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.processes import BARE, INTERPRETER, PATIENCE_S
from support.warm import WarmPython

SCRIPT = """
import ctypes, json, os, sys
def mark(name):
    if name == "begin":
        ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: any process may trace this one
        print(name, flush=True)
        sys.stdin.readline()
    else:
        try:
            os.rmdir("/gpucache-marker")
        except FileNotFoundError:
            pass
"""
"""How a script begins that is to be killed: it calls `mark` with "begin" and with "end"."""

# What changes the disk, or a lock ("?": not on every architecture).
CHANGING = (
    "?mkdir,?mkdirat,?open,openat,?creat,write,?pwrite64,?writev,fsync,?fdatasync,?rename,?renameat,?renameat2,flock,"
    "?link,?linkat,?symlink,?symlinkat,?unlink,?unlinkat,?rmdir,?chmod,fchmod,?fchmodat,?chown,fchown,?fchownat,"
    "?truncate,ftruncate,?utimensat,?fsetxattr,?fremovexattr"
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


class Ended(NamedTuple):
    """How a process ended, and what it said on stderr."""

    returncode: int
    said: str


class EveryCall:
    """Traces scripts, and kills them, each run in a new directory below ``base``."""

    def __init__(self, strace: str, base: Path) -> None:
        self._strace = strace
        self._base = base

    def changes(self, script: str, start: Start, name: str = "once") -> list[Call]:
        """Run the script without a kill; its calls between the marks that change the disk or a lock.

        ``start`` makes the tree in a directory and says the script's arguments, which follow that directory.
        """
        with warm(script) as python:
            process, calls = self._traced(
                python, self._base / name, script, start, "-e", f"trace={CHANGING}"
            )
        assert process.returncode == 0, process.said
        (end,) = (number for number, call in enumerate(calls) if "gpucache-marker" in call.line)
        return [call for call in calls[:end] if call.changes]

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
        assert len(points) >= least, len(points)
        print(f"killed at each of {len(points)} calls")

        def kill(point: Call) -> Path:
            home = self._base / f"{point.name}-{point.number}"
            inject = f"inject={point.name}:signal=KILL:when={point.number}"
            process, calls = self._traced(
                python, home, script, start, "-e", f"trace={point.name}", "-e", inject
            )
            assert process.returncode == -signal.SIGKILL, (point, process.said)
            assert alike(calls[-1].line, home) == alike(point.line, self._base / "once"), (
                "another call was hit"
            )
            return home

        with warm(script) as python, ThreadPoolExecutor(os.cpu_count()) as pool:
            for home, point in zip(pool.map(kill, points), points, strict=True):
                check(home, point.line)
        return set(firsts)

    def _traced(
        self, python: WarmPython, home: Path, script: str, start: Start, *options: str
    ) -> tuple[Ended, list[Call]]:
        """Run the script; the calls of its first thread, which does the work: another one beats for its locks."""
        home.mkdir()
        process = python.start(script, home, *start(home), env=BARE)
        try:
            begun = process.stdout.readline()
            assert begun == "begin\n", process.stderr.read()
            with self._attached(process.pid, home / "log", *options):
                _, said = process.communicate("\n", PATIENCE_S)
        finally:
            process.end()
        lines = (home / "log").read_text().splitlines()
        (home / "log").unlink()
        seen: Counter[str] = Counter()
        calls = []
        for line in lines:
            match = re.match(r"(\d+) +(\w+)\(", line)
            if match is not None and int(match[1]) == process.pid:
                seen[match[2]] += 1
                calls.append(Call(match[2], seen[match[2]], line))
        return Ended(process.wait(), said), calls

    @contextmanager
    def _attached(self, pid: int, log: Path, *options: str) -> Iterator[None]:
        """Trace a process, from now until its end."""
        # Whole strings: a cut one ends elsewhere where a number before the cut has one digit more.
        command = [self._strace, "-f", "-s", "4096", "-o", str(log), *options, "-p", str(pid)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as strace:
            try:
                assert strace.stderr is not None
                said = strace.stderr.readline()
                assert "attached" in said, said
                yield
                strace.wait(PATIENCE_S)
            finally:
                strace.kill()


@contextmanager
def warm(script: str) -> Iterator[WarmPython]:
    """A Python that has made the script's imports, and writes no bytecode."""
    imports = [
        node for node in ast.parse(script).body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    python = WarmPython([INTERPRETER, "-S"], "\n".join(map(ast.unparse, imports)), BARE)
    try:
        yield python
    finally:
        python.close()


def alike(line: str, home: Path) -> str:
    """A line of the trace without its result and what differs from run to run: numbers, digests, random names."""
    line = re.sub(r"(\)? += .*| <unfinished \.\.\.>)$", "", line).replace(str(home), "HOME")
    # a time that strace spells out, with a fraction or without
    line = re.sub(r"/\*.*?\*/", "", line)
    line = re.sub(
        r"(publish-|gpucache-output-|gpucache-new-|gpucache-staging-|tmp\.gpucache-)[\w.-]+|[0-9a-f]{8,}|\d+",
        "?",
        line,
    )
    return " ".join(line.split())  # strace pads short pids
