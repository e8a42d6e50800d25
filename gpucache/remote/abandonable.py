"""`Worker`: calls what may never return, in a thread of its own that is abandoned once the time is over.

opendal bounds each read and not a whole request, and nothing bounds the look-up of a host's name. opendal's calls for
`asyncio` could be cancelled, but after them the process aborts at its end in four of ten cases (0.47.12, CPython 3.11:
a thread of its pool meets the ending interpreter, PyO3/pyo3-async-runtimes#40); its plain calls leave the interpreter
to other threads, and a thread that still waits in one does the process's end no harm.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from gpucache import threads

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class TimeIsOver(Exception):
    """A call has not returned in time; its thread is left to itself."""


class CallFailed(Exception):
    """A call has raised ``error``, whatever that is: no signal of the caller's own process is among those."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Worker:
    """One thread, which makes one call at a time for whoever has this worker.

    After a `TimeIsOver` the worker must not be used again: its thread ends when the call returns.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self.last: Callable[[], object] | None = None
        """What the thread still calls before it ends: some objects must go in the thread in which they came up."""
        thread = threading.Thread(target=self._serve, name="gpucache-remote", daemon=True)
        threads.start(thread)

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Call a function and return what that returns.

        Raises:
            CallFailed: the function has raised something.
            TimeIsOver: the function has not returned after so many seconds.
        """
        self._calls.put(function)
        try:
            has_returned, outcome = self._outcomes.get(timeout=seconds)
        except queue.Empty:
            self.end()
            raise TimeIsOver from None
        except BaseException:  # ^C: nobody waits for the outcome any more
            self.end()
            raise
        if not has_returned:
            raise CallFailed(outcome)
        returned: T = outcome
        return returned

    def end(self) -> None:
        """Let the thread end once the call that is being made, if there is one, returns."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                outcome = (True, call())
            except BaseException as error:
                outcome = (False, error)
            self._outcomes.put(outcome)
            # What these hold, perhaps an open connection, is not kept while nobody calls.
            del call, outcome
        if self.last is not None:
            self.last()


class Workers:
    """The workers of one remote: as many as there are calls at once, and used again."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

    def take(self) -> Worker:
        """A worker for one caller, who gives it back, or ends it.

        Raises:
            OSError: no thread can be started.
        """
        try:
            return self._idle.pop()  # one operation of the list: two threads get different ones
        except IndexError:
            return Worker()

    def give_back(self, worker: Worker) -> None:
        """Let the next caller have this worker, none of whose calls is being made."""
        self._idle.append(worker)

    def __del__(self) -> None:
        for worker in self._idle:
            worker.end()
