"""Move damaged entries out of the way, to the root's ``quarantine``, for whoever wants to look at them."""

from __future__ import annotations

import errno
import os
import shutil
import time

from gpucache.disk.files import make_directory
from gpucache.layout import paths

ASIDE = "tmp.gpucache-"
"""How the name of a directory begins that is not yet, or no longer, an entry or view, beside entries and views."""


def quarantine(root: str, path: str) -> bool:
    """Move a damaged directory to the quarantine; return whether it is kept there.

    A directory on another file system than the quarantine is removed.

    Raises:
        OSError: the directory could not be moved.
    """
    directory = paths.ours(root, "quarantine")
    make_directory(directory)
    where = f"{directory}/{os.path.basename(path)}.{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, where)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        remove_in_place(path)
        return False


def remove_in_place(path: str) -> None:
    """Remove a directory that cannot be moved to the quarantine: rename it where it lies, if possible, and delete it.

    Of a directory in an image's layer, overlayfs refuses every rename (``EXDEV``, unless ``redirect_dir`` is on): then
    its manifest goes first, and its group, so that nobody takes the rest for an entry.

    Raises:
        OSError: the directory stays.
    """
    beside = f"{os.path.dirname(path)}/{ASIDE}{time.time_ns():x}.{os.getpid()}"
    try:
        os.rename(path, beside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = path
        # names of ours and of groups begin with an underscore
        for name in sorted(os.listdir(path)):
            if name.startswith("__"):
                os.unlink(f"{path}/{name}")
    shutil.rmtree(beside, ignore_errors=True)


def quarantined(path: str) -> float | None:
    """When a directory in the quarantine was moved there (seconds since the epoch); None if its name does not tell."""
    parts = path.rsplit(".", 2)
    try:
        return int(parts[1], 16) / 1e9
    except (IndexError, ValueError):
        return None
