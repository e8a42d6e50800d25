"""Owners that a user namespace does not know: each is shown as one and the same number, 65534 (user_namespaces(7)).

A rootless container maps some users and groups of the machine, often one inside as 65534 too, ``nobody``. So where not
all are mapped, that number may stand for anybody.
"""

from __future__ import annotations

import errno
import os

from gpucache.disk.door import SAFELY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["uid", "gid"]

_ALL = 2**32 - 1
"""So many ids there are outside all containers."""


def may_be_unmapped(number: int, kind: Kind = "uid") -> bool:
    """Whether a user or group id may stand for every one that this process's user namespace does not know."""
    try:
        if number != _number_in(f"/proc/sys/kernel/overflow{kind}"):
            return False
        with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
            mapped = sum(int(line.split()[2]) for line in file)
    except (OSError, ValueError, IndexError):
        return False
    return mapped < _ALL


def is_really_own(path: str) -> bool:
    """Whether a file or directory that shows this user as its owner is his, and not an unmapped user's.

    The kernel lets only the owner, and who has a capability over him, open something without renewing its access time.
    """
    flags = os.O_RDONLY | SAFELY
    try:
        os.close(os.open(path, flags | getattr(os, "O_NOATIME", 0)))
    except OSError as error:
        return error.errno != errno.EPERM  # of other errors whoever uses it is told
    return True


def _number_in(path: str) -> int:
    with open(path, encoding="utf-8") as file:
        return int(file.read())
