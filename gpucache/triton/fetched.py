"""Has an entry that was missed fetched from a remote, in the place of a compile that would make the same.

Nothing of `gpucache.remote` is imported where no remote is set.
"""

from __future__ import annotations

import logging
import sys
import time

from gpucache import configuration
from gpucache.log import tell, warn_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.remote.ask import Reading
    from gpucache.remote.question import Answer
    from gpucache.triton.location import Location

_readings: dict[str, Reading | None] = {}
"""By the root: the remote that is asked for its entries; None where none can be, which was told."""
_COMPILED = "compiling here"


def fetched(location: Location, store_key: str) -> bool:
    """Ask the remote for an entry; return whether the store has the entry now.

    The caller holds the lock of the key, and has looked into the store again since. Over within
    `GPUCACHE_REMOTE_TIMEOUT_S`, whatever the remote does; where the remote has failed just before, for any process of
    the node, at once. Each failure is a miss, and is told once.
    """
    if not location.has_remote or not location.limit.may_add():
        return False
    version = running_version()
    reading = _reading(location.root)
    if version is None or reading is None:
        return False
    from gpucache.remote.ask import ask  # few processes have a remote, and fewer miss

    began = time.monotonic()
    try:
        answer = ask(reading, location.locks.directory(), store_key, version)
    except OSError as error:
        location.degraded("the remote cannot be asked", error)
        return False
    spent = time.monotonic() - began
    _count(location, answer, spent)
    _tell(answer, store_key, spent)
    return answer.did == "hit"


def running_version() -> str | None:
    """The version of the Triton of this process; None where there is none, or one that does not say it."""
    version = getattr(sys.modules.get("triton"), "__version__", None)
    return version if isinstance(version, str) else None


def _reading(root: str) -> Reading | None:
    """The remote that is asked for the entries of a root, as this process's environment says it."""
    try:
        return _readings[root]
    except KeyError:
        from gpucache.remote.setting import reading_for_launch

        _readings[root] = reading_for_launch(root, configuration.environ(root=root))
        return _readings[root]


def _count(location: Location, answer: Answer, spent: float) -> None:
    stats = location.stats
    if answer.did == "hit":
        stats.brought("remote_hits")
    elif answer.did == "miss":
        stats.add("remote_misses")
    elif answer.did == "bad":
        stats.add("remote_bad")
    elif answer.did in ("error", "timeout"):
        stats.add("remote_errors")
    stats.add("remote_bytes", answer.size_bytes)
    stats.add("remote_s", spent, now=True)


def _tell(answer: Answer, store_key: str, spent: float) -> None:
    """Tell what came of it; of failures, each kind once in a job."""
    said = answer.said or answer.code
    fields = {"key": store_key, "seconds": round(spent, 3)}
    tell(logging.DEBUG, "remote: %s %s in %.3f s: %s", answer.did, store_key, spent, said, **fields)
    kind = f"remote {answer.code}"
    if answer.did == "bad":
        outcome = f"{_COMPILED}; what lies there stays"
        warn_once("the remote has an entry that is refused", said, outcome, kind)
    elif answer.did in ("error", "timeout"):
        warn_once("the remote cannot be asked", said, f"{_COMPILED}, and asking later again", kind)
    elif answer.did == "disk":
        warn_once("what the remote has cannot be kept", said, _COMPILED, kind)
    elif answer.code == "unusable":
        warn_once("the remote cannot be used", said, _COMPILED, kind)
