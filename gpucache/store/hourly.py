"""Files whose time says when something in a root was last looked at, so that it is looked at once an hour a root."""

from __future__ import annotations

import os
import time

from gpucache.disk.sharing import open_or_new

EVERY_S = 3600.0


def is_due(mark: str) -> bool:
    """Whether nobody has noted in the last hour that he looked; a time in the future is a wrong clock's."""
    try:
        age_s = time.time() - os.lstat(mark).st_mtime
    except OSError:
        return True
    return not 0 <= age_s < EVERY_S


def note(mark: str) -> None:
    """Note that all was looked at now.

    Raises:
        OSError: the file cannot be made, or is no file.
    """
    fd = open_or_new(mark, os.O_WRONLY)
    try:
        os.utime(fd)
    finally:
        os.close(fd)
