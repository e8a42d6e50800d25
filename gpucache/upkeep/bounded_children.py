"""Forked children that do one thing each, within a time limit, and tell what came of it: a hang is theirs alone.

A child has no way back to what its caller has open: its stdin, stdout and stderr are ``/dev/null``, and all else but
the pipe of its answer is closed. It executes no program. What it answers may be anybody's, once the child has taken
over a user's rights, and is JSON of a bounded length.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Act = Callable[[], object]
How = Literal["answered", "failed", "killed", "timed-out"]

_MOST_BYTES = 1 << 22
"""Of an answer: 10,000 paths of 400 letters."""
_AT_ONCE = 4
"""So many children run at once, so that one that hangs does not keep the others waiting."""
_MEMORY_BYTES = 4 << 30
_DEATH_S = 2.0
"""How long a killed child may take to be gone: one that waits in the kernel for a disk may take for ever."""
_OWN_LIMIT_S = 5.0
"""So much later than its parent a child ends itself, if that is no more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child has ended."""

    how: How
    answer: Any = None
    """What it has answered, of JSON's types."""
    detail: str = ""
    """Otherwise: what it said of its failure, or by what signal it was killed."""


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    fd: int
    deadline: float
    said: bytearray = field(default_factory=bytearray)


def ended(acts: Sequence[Act], limit_s: float) -> Iterator[tuple[int, Ended]]:
    """Do each act in a child of its own, some at once, and yield its number and how it ended, as they end.

    An act that takes longer than ``limit_s`` seconds is killed. Leaving the iteration kills what still runs. The caller
    must have no thread that holds a lock which an act needs.
    """
    waiting = list(enumerate(acts))[::-1]
    running: dict[int, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                child = _started(*waiting.pop(), limit_s)
                running[child.fd] = child
            for child in _ready(list(running.values())):
                how = _heard(child)
                if how is not None:
                    del running[child.fd]
                    yield child.number, how
    finally:
        for child in running.values():
            _end(child)


def _started(number: int, act: Act, limit_s: float) -> _Child:
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_a_child(act, ours, limit_s)
    os.close(ours)
    return _Child(number, pid, theirs, time.monotonic() + limit_s)


def _ready(children: list[_Child]) -> list[_Child]:
    """Wait until a child says something, ends, or is over its time; those of which one of that is true."""
    first = min(child.deadline for child in children)
    poll = select.poll()
    for child in children:
        poll.register(child.fd, select.POLLIN)
    heard = {fd for fd, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000)}
    now = time.monotonic()
    return [child for child in children if child.fd in heard or child.deadline <= now]


def _heard(child: _Child) -> Ended | None:
    """Read what a child says; how it has ended, once it has."""
    if time.monotonic() >= child.deadline:
        _end(child)
        return Ended("timed-out")
    piece = os.read(child.fd, 1 << 16)
    child.said += piece
    if piece and len(child.said) <= _MOST_BYTES:
        return None
    status = _end(child) if piece else _reaped(child)
    if status is not None and os.WIFSIGNALED(status):
        return Ended("killed", detail=signal.Signals(os.WTERMSIG(status)).name)
    return _parsed(bytes(child.said))


def _parsed(said: bytes) -> Ended:
    try:
        answer = json.loads(said)
        failure = answer.get("failure")
    except (ValueError, AttributeError, RecursionError):
        return Ended("failed", detail="it ended without a word")
    if isinstance(failure, str):
        return Ended("failed", detail=failure)
    return Ended("answered", answer.get("answer"))


def _end(child: _Child) -> int | None:
    """Kill a child; its status, or None if it does not go."""
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return _reaped(child)


def _reaped(child: _Child) -> int | None:
    """Wait for the end of a child, which must be near, and close its pipe; its status, or None if it does not end."""
    os.close(child.fd)
    deadline = time.monotonic() + _DEATH_S
    while True:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            return status
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            return None
        time.sleep(0.002)


# ---- in the child


def _be_a_child(act: Act, pipe: int, limit_s: float) -> None:
    """Do the act, tell what came of it, and end this process: nothing of the parent's may run here."""
    try:
        rest = memoryview(_said(act, pipe, limit_s))
        while rest:
            rest = rest[os.write(pipe, rest) :]
    finally:
        os._exit(0)


def _said(act: Act, pipe: int, limit_s: float) -> bytes:
    try:
        _shut_off(pipe, limit_s)
        return json.dumps({"answer": act()}).encode()
    except BaseException as error:
        return json.dumps({"failure": f"{type(error).__name__}: {error}"[:2000]}).encode()


def _shut_off(pipe: int, limit_s: float) -> None:
    """Leave what the parent has open and has set up, and bound what this process may take."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s + _OWN_LIMIT_S)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > _MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.chdir("/")
