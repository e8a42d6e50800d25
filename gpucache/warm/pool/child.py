"""`Child`: a process of the pool as the scheduler knows it, and what it says or how it ends, as an `Event`."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from gpucache.escapes import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from gpucache.warm.pool.channel import Channel, Message

    Role = Literal["importer", "worker"]

_TAIL_BYTES = 2000
"""So much is kept of what a process has printed last."""
_TAIL_LETTERS = 300


class Child:
    """A process of the pool."""

    def __init__(self, role: Role, channel: Channel, output: int, parent: Child | None) -> None:
        self.role = role
        self.channel = channel
        self.parent = parent
        """The importer that was asked to fork it."""
        self.pid: int | None = None
        """Its number, once it has said so."""
        self.deadline: float | None = None
        """When its time is over, on the clock of `time.monotonic`; None while nothing is asked of it."""
        self.limit_s = 0.0
        self.why_killed = ""
        self.is_closed = False
        """Whether it was told to end, or has closed its end."""
        self.output = output
        self._tail = b""

    def keep_tail(self, data: bytes) -> None:
        """Keep the end of what the process prints; ``data`` came last."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def how_it_ended(self, status: int) -> str:
        """How the process has ended, by what `os.waitpid` gives, with its last words, or why it was killed."""
        if self.why_killed:
            return self.why_killed
        how = f"its {exit_in_words(os.waitstatus_to_exitcode(status))}"
        said = self._last_words()
        return f"{how}: {said}" if said else how

    def _last_words(self) -> str:
        """The last lines that it has printed, made safe to show, on one line."""
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        said = " ".join(line.strip() for line in lines[-3:])
        return printable(said[-_TAIL_LETTERS:])


class Event(NamedTuple):
    """Something that a process has said, or how it has ended."""

    child: Child
    message: Message | None
    ended: str | None = None
    """How: ``killed by SIGKILL``, ``it ended with exit code 3``; with what it printed last."""


def exit_in_words(code: int) -> str:
    """How a process has ended, by its exit code, which is negative for a signal."""
    if code >= 0:
        return f"process ended with exit code {code}"
    how = f"process was killed by {_signal_name(-code)}"
    return f"{how} (out of memory?)" if code == -signal.SIGKILL else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
