"""Has an entry that was missed copied or read from the fallback, in the place of a compile that would make the same.

Nothing of `gpucache.store.fallback` is imported where no fallback is set, nor before the first miss.
"""

from __future__ import annotations

import logging
import time

from gpucache.log import tell, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpucache.store.fallback import Answer
    from gpucache.store.fallback_entry import Did, Fallback
    from gpucache.store.turn import Turn
    from gpucache.triton.location import Location
    from gpucache.triton.staged import Staged


def from_fallback(location: Location, store_key: str, repair: bool) -> Did | None:
    """Ask the fallback for an entry; what came of it: with ``hit`` the own store has the entry now.

    None where there is no fallback. One that does not answer is waited for ten seconds, once. ``repair`` says that the
    caller holds the lock of the key. Each failure is a miss, and each kind is told once in a job.
    """
    if location.fallback is None or not location.limit.may_add():
        return None
    from gpucache.store.fallback import copy_entry  # few processes have one, and fewer miss

    def copied(fallback: Fallback, turn: Turn) -> Answer:
        return copy_entry(fallback, location.root, store_key, location.staging, repair, turn)

    answer = _answer(location, location.fallback, store_key, copied)
    if answer is None:
        return None
    if answer.did == "hit":
        location.limit.brought(answer.size_bytes)
    return answer.did


def staged_from_fallback(
    location: Location, store_key: str, staged: Staged
) -> dict[str, str] | None:
    """Read an entry of the fallback for this process alone, whose own store cannot take it; the paths of its files.

    They are in this process's private directory, and stay until it ends. None where the fallback has no such entry.
    Counts and tells as `from_fallback`.

    Raises:
        OSError: no place takes them.
    """
    if location.fallback is None:
        return None
    from gpucache.store.fallback import read_entry

    def read(fallback: Fallback, turn: Turn) -> Answer:
        return read_entry(fallback, location.root, store_key, turn)

    answer = _answer(location, location.fallback, store_key, read)
    if answer is None or answer.contents is None:
        return None
    location.stats.add_shared(now=True)
    paths = {name: staged.stage(name, data) for name, data in answer.contents.items()}
    staged.contents.clear()
    staged.group = paths  # the only copy, by which it stays
    return paths


def _answer(
    location: Location, root: str, store_key: str, question: Callable[[Fallback, Turn], Answer]
) -> Answer | None:
    """Ask, count and tell; None where that failed in a way that nobody has thought of."""
    from gpucache.store.fallback import Answer
    from gpucache.store.fallback_entry import Fallback
    from gpucache.triton.bounded_ask import ask

    began = time.monotonic()
    try:
        answer = ask(root, lambda turn: question(Fallback.at(root, location.trust), turn))
        if answer is None:
            answer = Answer("unreadable", f"{root} does not answer")
    except Exception as error:  # a miss, whatever it is
        location.degraded("the fallback cannot be asked", error, "going on without it")
        return None
    spent = time.monotonic() - began
    _count(location, answer, spent)
    _tell(answer, root, store_key, spent)
    return answer


def may_have(location: Location, store_key: str) -> bool:
    """Whether the fallback seems to have an entry, so that nobody need wait for another to bring it."""
    if location.fallback is None:
        return False
    from gpucache.store.fallback import has_entry
    from gpucache.triton.bounded_ask import ask

    root = location.fallback
    return bool(ask(root, lambda turn: has_entry(root, store_key)))


def _count(location: Location, answer: Answer, spent: float) -> None:
    stats = location.stats
    if answer.did == "hit":
        stats.brought("fallback_hits")
    elif answer.did == "miss":
        stats.add("fallback_misses")
    elif answer.did != "same":
        stats.add("fallback_errors")
    stats.add("fallback_bytes", answer.size_bytes)
    stats.add("fallback_s", spent)  # written with the miss or the hit that follows


def _tell(answer: Answer, root: str, store_key: str, spent: float) -> None:
    """Tell what came of it; of failures, each kind once in a job."""
    fields = {"key": store_key, "seconds": round(spent, 3)}
    said = "fallback: %s %s in %.3f s: %s"
    tell(logging.DEBUG, said, answer.did, store_key, spent, answer.said, **fields)
    kind = f"fallback {answer.did} {root}"
    outcome = "going on without it; `gpucache doctor` tells more"
    if answer.did in ("no-root", "unsafe"):
        warn_once("the fallback cannot be used", answer.said, outcome, kind)
    elif answer.did == "damaged":
        warn_once("the fallback has an entry that is refused", answer.said, outcome, kind)
    elif answer.did == "unreadable":
        warn_once("the fallback cannot be read", answer.said, outcome, kind)
    elif answer.did == "disk":
        warn_once("what the fallback has cannot be kept", answer.said, "going on without it", kind)
