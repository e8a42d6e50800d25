"""`GroupPaths`: asks whether the paths in a group file lead to its own directory, or to where that was copied from."""

from __future__ import annotations

import os
from collections.abc import Mapping


class GroupPaths:
    """Compares the paths of children with the directory of their group; remembers which directories are the same."""

    def __init__(self) -> None:
        self._same: dict[tuple[str, str], bool] = {}

    def elsewhere(self, children: Mapping[str, str], directory: str) -> str | None:
        """Name the first directory that a child's path leads to and that is not this one; None where all lead here."""
        for name, path in children.items():
            if path == f"{directory}/{name}":
                continue
            if not self._leads_here(path, directory, name):
                return os.path.dirname(path)
        return None

    def _leads_here(self, path: str, directory: str, child: str) -> bool:
        """Whether a path is that of the child in this directory, maybe by way of links above it."""
        parent, name = os.path.split(path)
        if name != child:
            return False
        if parent == directory:
            return True
        if not os.path.isabs(path):
            return _may_be_relative(parent, directory)
        if (parent, directory) not in self._same:
            self._same[parent, directory] = _is_same(parent, directory)
        return self._same[parent, directory]


def _may_be_relative(parent: str, directory: str) -> bool:
    """Whether a directory may be what a relative path meant, as `TRITON_CACHE_DIR` was: its path ends with that one."""
    steps = os.path.normpath(parent).split("/")
    named = [step for step in steps if step not in ("..", ".")]
    below = "/".join(named)
    return directory.endswith(f"/{below}")


def _is_same(parent: str, directory: str) -> bool:
    try:
        return os.path.samefile(parent, directory)  # a mount may give it two names
    except (OSError, ValueError):  # gone, or no path at all: a null byte
        return False
