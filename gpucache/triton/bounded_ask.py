"""Asks what may never answer, as a mount whose server is gone, in a thread; whoever asked goes on without, in the end.

A system call on such a mount cannot be given a limit, and ends with the process at the latest.
"""

from __future__ import annotations

import threading

from gpucache.store.turn import Turn
from gpucache.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

SILENT_S = 10.0
"""For so long, in seconds, nothing need be answered before whoever asks goes on."""
_LOOK_S = 0.5
_unanswered: dict[str, threading.Thread] = {}
"""By what was asked: the thread that still waits for an answer."""


def ask(place: str, question: Callable[[Turn], T], silent_s: float = SILENT_S) -> T | None:
    """What a question about a place answers; None where nothing is heard of the place for ``silent_s`` seconds.

    The question calls `Turn.beat` with each answer of the disk, and `Turn.may_act` before it does what others see. As
    long as one is unanswered, no other is asked about the place: then None comes at once. So a place that answers
    nothing costs a process its time limit once. What the question raises, this raises.
    """
    former = _unanswered.get(place)
    if former is not None and former.is_alive():
        return None
    _unanswered.pop(place, None)
    turn = Turn()
    answers: list[T] = []
    errors: list[BaseException] = []

    def put() -> None:
        try:
            answers.append(question(turn))
        except BaseException as error:
            errors.append(error)

    # Not waited for at the end of the process.
    thread = threading.Thread(target=put, name="gpucache-fallback", daemon=True)
    try:
        try:
            start(thread)
        except OSError:  # where no thread can be had, it is asked all the same
            return question(turn)
        while thread.is_alive():
            thread.join(max(0.0, min(_LOOK_S, silent_s - turn.silent_s())))
            if turn.silent_s() >= silent_s and thread.is_alive() and turn.leave():
                _unanswered[place] = thread
                return None
    except BaseException:  # a signal handler raised
        turn.leave()
        raise
    if errors:
        raise errors[0]
    return answers[0]
