"""`Turn`: one question to a mount that may never answer, between the thread that asks it and whoever waits for that."""

from __future__ import annotations

import threading
import time


class Turn:
    """When the asking thread was last seen to get on, and whether somebody still waits for it. For two threads.

    Before the first step that others see, the asking thread calls `may_act`, and whoever waits `leave`, before he goes
    on without: whichever comes first decides, so that nothing is done any more for somebody who has gone.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seen = time.monotonic()
        self._acts = False
        self._is_left = False

    def beat(self) -> None:
        """Say that something was answered."""
        self._seen = time.monotonic()

    def silent_s(self) -> float:
        """For how long nothing was answered, in seconds; 0 once the asking thread acts, which asks no more."""
        return 0.0 if self._acts else time.monotonic() - self._seen

    def may_act(self) -> bool:
        """Whether somebody still waits, who from then on waits to the end."""
        with self._mutex:
            self._acts = not self._is_left
            return self._acts

    def leave(self) -> bool:
        """Go on without the answer; False where the asking thread acts already."""
        with self._mutex:
            self._is_left = not self._acts
            return self._is_left
