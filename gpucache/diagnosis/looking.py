"""How checks find their way on the disk: to what exists, and to what is in a directory."""

from __future__ import annotations

import os


def nearest(path: str) -> str:
    """The path itself where it exists, else the nearest directory above it that does."""
    above = os.path.dirname(path)
    while not os.path.exists(path) and above != path:
        path = above
        above = os.path.dirname(path)
    return path


def listed(directory: str) -> list[str]:
    """The paths of what is in a directory; none where there is no such directory."""
    try:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
