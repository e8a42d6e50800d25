"""Which faults there are: `Fault`, one of them; all of an operation, and a sample."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Any file system may answer with any of them: FUSE hands through what its server says.
ERRNOS = [
    *("EACCES", "EBADF", "EBUSY", "EDQUOT", "EEXIST", "EINTR", "EINVAL", "EIO", "EISDIR", "ELOOP"),
    *("EMFILE", "EMLINK", "ENAMETOOLONG", "ENFILE", "ENODATA", "ENOENT", "ENOLCK", "ENOMEM"),
    *("ENOSPC", "ENOSYS", "ENOTCONN", "ENOTDIR", "ENOTEMPTY", "ENOTSUP", "EPERM", "EROFS"),
    *("ESTALE", "ETIMEDOUT", "EWOULDBLOCK", "EXDEV"),
]
NONE, SHORT, KILL = 0, -1, -2
MODES = {"once": 0, "afterwards": 1, "same-on": 2, "all-on": 3}

_ENDLESS = ("EINTR",)
"""What Python tries again for ever, if it is always the answer."""
_OF_DISKS = ("EIO", "ESTALE", "EACCES", "EROFS", "ENOSPC", "ENOTCONN")
"""What every call after the first may say."""


class Fault(NamedTuple):
    """One fault: at which call of an operation, and what happens there."""

    operation: str
    number: int
    """Which call below the root, from 1."""
    what: str
    """The name of an errno, ``SHORT`` or ``KILL``."""
    mode: str = "once"
    """``once``; ``afterwards``: the call is made and then fails; ``same-on``: so do all later calls of the function;
    ``all-on``: all later calls."""

    def __str__(self) -> str:
        """As a test's output names it, so that it can be tried again."""
        return f"{self.operation}:{self.number}:{self.what}:{self.mode}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The fault of which this is the text."""
        operation, number, what, mode = text.split(":")
        return cls(operation, int(number), what, mode)

    @property
    def code(self) -> int:
        """What `faults_arm` calls it."""
        codes = {"NONE": NONE, "SHORT": SHORT, "KILL": KILL}
        return codes[self.what] if self.what in codes else int(getattr(errno, self.what))


def kinds() -> list[tuple[str, str]]:
    """Every fault that can happen at a call: what, and in which mode."""
    made = [("KILL", "once"), ("SHORT", "once")]
    made += [(name, "once") for name in ERRNOS]
    made += [(name, "afterwards") for name in ("EIO", "ENOENT", "EEXIST", "ESTALE", "ETIMEDOUT")]
    made += [(name, "same-on") for name in ERRNOS if name not in _ENDLESS]
    made += [(name, "all-on") for name in _OF_DISKS]
    return made


def sampled(calls: Sequence[str], operation: str, count: int, draw: random.Random) -> list[Fault]:
    """So many faults of an operation, at calls of all kinds alike however often one is made."""
    places: dict[str, list[int]] = {}
    for number, call in enumerate(calls, 1):
        place = re.sub(r"[0-9a-f]{6,}|\d+|[a-z0-9_]{8}(?=/|$)", "?", call)
        places.setdefault(place, []).append(number)
    groups, made = list(places.values()), kinds()
    faults = []
    for _ in range(count):
        number = draw.choice(draw.choice(groups))
        faults.append(Fault(operation, number, *draw.choice(made)))
    return faults


def every_fault(calls: Sequence[str], operation: str) -> Iterator[Fault]:
    """All faults of an operation."""
    for number in range(1, len(calls) + 1):
        for what, mode in kinds():
            yield Fault(operation, number, what, mode)
