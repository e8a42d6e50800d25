"""`after_fork`: what a forked child must forget. It closes its copies of the parent's locks, and never unlocks them.

`at_exit`: what a process does at its end, also one that ends by `os._exit`.

``flock`` belongs to the open file, which parent and child share: ``LOCK_UN`` in the child would free the parent's lock.
Nor may the child wait for a `threading.Lock` that a thread of the parent held: that thread is not in the child.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def after_fork(forget: Callable[[], None]) -> Callable[[], None]:
    """Have ``forget`` called in every forked child, before anything else runs there. A decorator."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)
    return forget


closed_in_child: set[int] = set()
"""The descriptors by which this process holds a lock for a moment: a forked child closes its copies of them."""


@after_fork
def _close_in_child() -> None:
    for fd in closed_in_child:
        with suppress(OSError):
            os.close(fd)
    closed_in_child.clear()


_at_exit: list[Callable[[], None]] = []


def at_exit(end: Callable[[], None]) -> Callable[[], None]:
    """Have ``end`` called at the end of this process, the last one first. A decorator."""
    atexit.register(end)
    _at_exit.append(end)
    return end


def run_at_exit() -> None:
    """Call what `at_exit` was given, for a process that ends by `os._exit`, without what programs have registered."""
    while _at_exit:
        _at_exit.pop()()
