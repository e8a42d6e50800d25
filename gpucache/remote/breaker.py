"""One breaker for each remote and node: what a remote costs is bounded for all processes of the node together.

A server that hangs would cost each rank its own time limit at each key. So what one process has learned stands in a
small file beside the locks: `Breaker.allows` reads that before a remote is asked, and while an answer is awaited.

- One answer that did not come in time, or three failures in a row, close the remote to all for 30 s, then for twice as
  long each time, up to 10 minutes. When that is over, one process asks for all (a *probe*), and what comes of it
  counts.
- 16 times in a row that it had not what was asked for, or only what nobody trusts, close it for 60 s: an empty remote
  is not asked for every kernel of a cold run.
- Either comes sooner where the answers in a row that were of no use took as long as one time limit: a server that takes
  its time, and always just not too much, costs no more than one that hangs.
- A courier that is being started is known here too, so that one process starts it and not each.

Times are those of the kernel's clock that all processes of a node share (`time.monotonic`); the file's name has the
node's id, which is another after each boot.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

from gpucache.disk.door import open_regular
from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import let_go
from gpucache.disk.sharing import open_or_new
from gpucache.forks import closed_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Why = Literal["", "timeout", "silent", "no-courier", "errors", "misses", "unusable"]
"""Why a remote is closed: it did not answer in time; the courier did not; none came up; it failed three times; it
had nothing of what was asked for; it cannot be asked as things are set up."""

FIRST_S = 30.0
LONGEST_S = 600.0
MOST_ERRORS = 3
MOST_MISSES = 16
EMPTY_S = 60.0
STARTING_S = 5.0
"""For so long a courier that was started is waited for before another one is."""
_PATIENCE_S = 0.05
_LOOK_S = 0.001
_BYTES = 4096
_SAID_LETTERS = 300
_MOST_TERMS = 10
_FILE = os.O_RDWR | os.O_CREAT


class Waste(NamedTuple):
    """What an answer that is of no use has cost."""

    spent_s: float = 0.0
    limit_s: float = math.inf
    """The time limit of a question: no more is to be wasted in a row."""


class State(NamedTuple):
    """What a node knows of a remote. Times are those of `time.monotonic`."""

    closed_until: float = 0.0
    probed_until: float = 0.0
    """Until then the answer to a probe is awaited."""
    terms: int = 0
    """So often in a row the remote was closed for failures; above 0, one process probes it when the term is over."""
    errors: int = 0
    misses: int = 0
    wasted_s: float = 0.0
    """How long answers that were of no use took in all, since the last that was."""
    started: float = 0.0
    """When a courier was started last."""
    why: Why = ""
    said: str = ""
    """What there is to tell of that, in words."""

    def is_closed(self, now: float) -> bool:
        """Whether nobody may ask the remote; a time that no process of this boot can have written is none."""
        return now < self.closed_until <= now + LONGEST_S

    def has_failed(self, now: float) -> bool:
        """Whether it is closed because it failed, so that nobody need wait for its answer any longer."""
        return self.terms > 0 and self.is_closed(now)

    def allows(self, now: float) -> bool:
        """Whether the remote may be asked; where a probe is due, only by the process that takes it (`probing`)."""
        is_probed = now < self.probed_until <= now + LONGEST_S
        return not self.is_closed(now) and not (self.terms and is_probed)

    def probing(self, now: float, limit_s: float) -> State:
        """Once a process has begun to probe, which takes ``limit_s`` at most."""
        return self._replace(probed_until=now + limit_s)

    def closed(self, now: float, why: Why, said: str = "") -> State:
        """Once the remote has failed for good; a failure of the same time as the last changes nothing."""
        if self.is_closed(now):
            return self
        term_s = min(FIRST_S * 2**self.terms, LONGEST_S)
        terms = min(self.terms + 1, _MOST_TERMS)
        said = said[:_SAID_LETTERS]
        return State(now + term_s, terms=terms, started=self.started, why=why, said=said)

    def failed(self, now: float, said: str, waste: Waste) -> State:
        """Once a request has failed: a probe closes the remote again, any other is counted."""
        errors, wasted_s = self.errors + 1, self.wasted_s + waste.spent_s
        if self.terms or errors >= MOST_ERRORS or wasted_s >= waste.limit_s:
            return self.closed(now, "errors", said)
        return self._replace(errors=errors, wasted_s=wasted_s, said=said[:_SAID_LETTERS])

    def missed(self, now: float, waste: Waste) -> State:
        """Once the remote has answered, and had nothing that can be used."""
        misses, wasted_s = self.misses + 1, self.wasted_s + waste.spent_s
        if misses >= MOST_MISSES or wasted_s >= waste.limit_s:
            return State(now + EMPTY_S, started=self.started, why="misses")
        return State(misses=misses, wasted_s=wasted_s, started=self.started)

    def answered(self) -> State:
        """Once the remote has given what was asked for."""
        return State(started=self.started)

    def starting(self, now: float) -> State:
        """Once a process has begun to start a courier."""
        return self._replace(started=now)

    def not_started(self) -> State:
        """Once a process that was to start a courier could not: another may."""
        return self._replace(started=0.0)

    def came_up(self) -> State:
        """Once a courier answers: what its absence has closed is open again."""
        if self.why in ("no-courier", "unusable"):
            return State()
        return self.not_started()


_NONE = Waste()
_unwritten: dict[str, State] = {}
"""By path of a file that could not be written: what this process knows."""


class Breaker:
    """The state of one remote on this node, in a file. Any number of processes and threads; nobody waits for long.

    Where the file cannot be made or locked, what this process learns counts for this process alone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        """The file, in a directory of locks."""

    def read(self) -> State:
        """What the node knows, or, where that could not be written, this process; takes no lock."""
        try:
            fd = _opened(self.path, os.O_RDONLY)
        except OSError:
            return self._with_own(State())
        try:
            return self._with_own(_parsed(os.pread(fd, _BYTES, 0)))
        finally:
            os.close(fd)

    def _with_own(self, found: State) -> State:
        """What is known, given what the file says."""
        own = _unwritten.get(self.path)
        if own is None or found.is_closed(time.monotonic()):
            return found
        return own

    def allows(self, limit_s: float) -> bool:
        """Whether this process may ask the remote now, for ``limit_s`` at most. Where a probe is due, it is taken."""
        now = time.monotonic()
        state = self.read()
        if not state.allows(now):
            return False
        if not state.terms:
            return True
        taken = []

        def probe(found: State) -> State:
            if not found.allows(now):
                return found
            taken.append(True)
            return found.probing(now, limit_s) if found.terms else found

        self._change(probe)
        return bool(taken)

    def closed(self, why: Why, said: str = "") -> None:
        """The remote did not answer in time, or cannot be asked: it is closed to all processes of the node."""
        now = time.monotonic()
        self._change(lambda state: state.closed(now, why, said))

    def failed(self, said: str, waste: Waste = _NONE) -> None:
        """A request has failed; ``said`` is what, in words that have no secret."""
        now = time.monotonic()
        self._change(lambda state: state.failed(now, said, waste))

    def missed(self, waste: Waste = _NONE) -> None:
        """The remote has answered, and had nothing that can be used."""
        now = time.monotonic()
        self._change(lambda state: state.missed(now, waste))

    def answered(self) -> None:
        """The remote has given what was asked for."""
        self._change(State.answered)

    def not_started(self) -> None:
        """This process could not start the courier that it was to start."""
        self._change(State.not_started)

    def came_up(self) -> None:
        """A courier answers from now on."""
        self._change(State.came_up)

    def may_start(self) -> bool:
        """Whether this process is the one that starts a courier: nobody has, for `STARTING_S`."""
        now = time.monotonic()
        taken = []

        def start(state: State) -> State:
            if now - STARTING_S < state.started <= now:
                return state
            taken.append(True)
            return state.starting(now)

        self._change(start)
        return bool(taken)

    def _change(self, change: Callable[[State], State]) -> None:
        """Read, change and write the state under its lock; a lock that others do not let go is not waited for."""
        try:
            with _locked(self.path) as fd:
                before = _parsed(os.pread(fd, _BYTES, 0))
                after = change(self._with_own(before))
                if after != before:
                    os.pwrite(fd, _encoded(after), 0)
                _unwritten.pop(self.path, None)
        except BlockingIOError:
            return
        except OSError:
            _unwritten[self.path] = change(self.read())


@contextmanager
def _locked(path: str) -> Iterator[int]:
    fd = _opened(path, _FILE)
    closed_in_child.add(fd)
    try:
        _lock(fd, path)
        yield fd
    finally:
        closed_in_child.discard(fd)
        let_go(fd)


def _lock(fd: int, path: str) -> None:
    """Lock an open file, which others hold for microseconds.

    Raises:
        BlockingIOError: somebody holds it for longer, or this thread does, in whose middle a signal handler runs.
    """
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(_LOOK_S)


def _opened(path: str, flags: int) -> int:
    """Open the file of a state, by the directory in which nobody else could have planted it.

    Raises:
        OSError: it cannot be opened, or is no plain file, or has another name, by which it is another's file.
    """
    directory, _, name = path.rpartition("/")
    here = open_lock_directory(directory)
    try:
        if flags & os.O_CREAT:
            os.close(open_or_new(name, flags & ~os.O_CREAT, here))
        fd, found = open_regular(name, flags & ~os.O_CREAT, here)
    finally:
        os.close(here)
    if found.st_nlink > 1:
        os.close(fd)
        raise PermissionError(path)
    return fd


def _encoded(state: State) -> bytes:
    """The state as JSON, filled up with blanks, so that a shorter one leaves nothing of a longer one."""
    return json.dumps(state._asdict()).encode().ljust(_BYTES)


def _parsed(data: bytes) -> State:
    """The state that a file says; an open remote where it says nothing that makes sense, as a torn one does not."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(data)
        fields = {name: said[name] for name in State._fields}
        for name, default in State._field_defaults.items():
            if type(fields[name]) is not type(default):
                return State()
        if 0 <= fields["terms"] <= _MOST_TERMS:
            return State(**fields)
    return State()
