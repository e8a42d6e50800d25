"""`returned_in_time`: calls what may never return, in a thread that is abandoned once the time is over."""

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


def returned_in_time(function: Callable[[], T], seconds: float) -> T:
    """Call a function in a thread of its own and return what it returns.

    Raises:
        CallFailed: the function has raised something.
        TimeIsOver: the function has not returned after so many seconds; what it returns later is dropped.
        OSError: no thread can be started.
    """
    outcomes: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcomes.put((True, function()))
        except BaseException as error:
            outcomes.put((False, error))

    threads.start(threading.Thread(target=call, name="gpucache-remote", daemon=True))
    try:
        has_returned, outcome = outcomes.get(timeout=seconds)
    except queue.Empty:
        raise TimeIsOver from None
    if not has_returned:
        raise CallFailed(outcome)
    returned: T = outcome
    return returned
