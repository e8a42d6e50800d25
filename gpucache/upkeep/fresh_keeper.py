"""The process that `gpucache run --fresh` starts beside its command: it removes the fresh root after the command's end.

It is small, nobody's child, and holds nothing but a descriptor of each process that uses the root, by which the kernel
tells it of their end (pidfd_open(2), Linux 5.3; elsewhere it looks twice a second).
"""

from __future__ import annotations

import sys
import time

from gpucache.disk.processes import wait_for_any
from gpucache.disk.spawning import settle_in
from gpucache.errors import GpuCacheError
from gpucache.upkeep.fresh_runs import sweep, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SIGN_S = 3600.0
"""How often other nodes that share the root are given a sign of life."""
_AFTER_S = 3.0
"""What compiles ahead of a program ends within two seconds of the program, and may have written meanwhile."""


def main(words: Sequence[str] | None = None) -> None:
    """Wait until nobody uses the fresh root of this name in this root, and remove it."""
    root, name = sys.argv[1:] if words is None else words
    settle_in()
    try:
        while running := users(root, name):
            wait_for_any(running, _SIGN_S)
    except (GpuCacheError, OSError):
        return  # the next command sweeps
    time.sleep(_AFTER_S)
    sweep(root)
