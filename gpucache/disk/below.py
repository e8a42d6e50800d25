"""What lies below a directory, for whoever only looks: however deep anybody has put directories into one another."""

from __future__ import annotations

import os

from gpucache.disk.within import DEEPEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def below(directory: str) -> Iterator[os.DirEntry[str]]:
    """Each file and directory below a directory, itself perhaps a link, in no order.

    No link below it is followed, what cannot be listed is passed over, and what lies more than a hundred directories
    deep, where nobody puts anything but to hurt, stays unseen: no tree ends the caller by its depth, as `os.walk` does
    up to Python 3.11. Beside any process.
    """
    waiting = [(directory, 1)]
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as items:
                for item in items:
                    if depth < DEEPEST and item.is_dir(follow_symlinks=False):
                        waiting.append((item.path, depth + 1))
                    yield item
        except OSError:
            continue  # gone, or closed to this user
