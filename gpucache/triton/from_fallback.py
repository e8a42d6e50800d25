"""Has an entry that was missed copied from the fallback, in the place of a compile that would make the same.

Nothing of `gpucache.store.fallback` is imported where no fallback is set, nor before the first miss.
"""

from __future__ import annotations

import logging
import time

from gpucache.log import tell, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.store.fallback import Answer
    from gpucache.triton.location import Location


def from_fallback(location: Location, store_key: str, repair: bool) -> bool:
    """Ask the fallback for an entry; return whether the own store has the entry now.

    ``repair`` says that the caller holds the lock of the key. Each failure is a miss, and each kind is told once in a
    job.
    """
    if location.fallback is None:
        return False
    from gpucache.store.fallback import (
        Fallback,
        copy_entry,
    )  # few processes have one, and fewer miss

    fallback = Fallback(location.fallback, location.trust)
    began = time.monotonic()
    try:
        answer = copy_entry(fallback, location.root, store_key, location.staging, repair)
    except Exception as error:  # a miss, whatever it is
        location.degraded("the fallback cannot be asked", error, "going on without it")
        return False
    spent = time.monotonic() - began
    _count(location, answer, spent)
    _tell(answer, location.fallback, store_key, spent)
    return answer.did == "hit"


def may_have(location: Location, store_key: str) -> bool:
    """Whether the fallback seems to have an entry, so that nobody need wait for another to bring it."""
    if location.fallback is None:
        return False
    from gpucache.store.fallback import Fallback, has_entry

    return has_entry(Fallback(location.fallback, location.trust), store_key)


def _count(location: Location, answer: Answer, spent: float) -> None:
    stats = location.stats
    if answer.did == "hit":
        stats.add("fallback_hits")
        location.limit.brought(answer.size_bytes)
    elif answer.did == "miss":
        stats.add("fallback_misses")
    elif answer.did != "same":
        stats.add("fallback_errors")
    stats.add("fallback_bytes", answer.size_bytes)
    stats.add("fallback_s", spent, now=True)


def _tell(answer: Answer, root: str, store_key: str, spent: float) -> None:
    """Tell what came of it; of failures, each kind once in a job."""
    tell(logging.DEBUG, "fallback: %s %s in %.3f s: %s", answer.did, store_key, spent, answer.said)
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
