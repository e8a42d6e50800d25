"""Walk what lies below a root by descriptors, from above to below, and tell of each thing before what is in it.

Whoever is told may change a directory before its names are listed: what is made there afterwards is made in a changed
directory, and what was made before is on the list. No link is followed and no mount entered, whatever is swapped.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from gpucache.disk.within import DEEPEST, open_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from gpucache.disk.within import Straight


class Seen(NamedTuple):
    """Something that a walk has come to."""

    here: int
    """A descriptor of the directory that it is in, open while the walk tells of it."""
    name: str
    path: str
    """Below the root; the root's own is empty."""
    found: os.stat_result
    """As `os.lstat` found it."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, and no link to one."""
        return stat.S_ISDIR(self.found.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.found.st_mode)


if TYPE_CHECKING:

    class Walker(Protocol):
        """Who is told what a walk comes to."""

        def see(self, seen: Seen) -> bool:
            """Something is there; return whether to look into it, if it is a directory."""

        def enter(self, seen: Seen, fd: int) -> None:
            """A directory was opened, and is about to be listed."""

        def fail(self, path: str, error: OSError) -> None:
            """What is at a path below the root cannot be looked at or into."""


def walk(root: str, disk: Straight, walker: Walker) -> None:
    """Tell a walker of a root and of all that is in it, each directory before what it holds.

    ``root`` is a real path. What vanishes meanwhile is passed over; what lies more than a hundred directories deep,
    where nobody puts anything but to hurt, stays unseen. Beside any process.

    Raises:
        OSError: the root itself cannot be looked at.
    """
    device = disk.lstat(root).st_dev
    walking = _Walk(device, walker)
    disk.act(root, lambda here, name: walking.tree(here, name, "", 0))


class _Walk:
    """One walk, on one mount."""

    def __init__(self, device: int, walker: Walker) -> None:
        self._device = device
        self._walker = walker

    def tree(self, here: int, name: str, path: str, depth: int) -> None:
        """Tell of one thing in an open directory, and of all that is in it."""
        try:
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if found.st_dev != self._device:
                return
            seen = Seen(here, name, path, found)
            looks_in = self._walker.see(seen)
            if looks_in and seen.is_directory and depth < DEEPEST:
                self._below(seen, depth)
        except (FileNotFoundError, NotADirectoryError):
            return  # gone meanwhile
        except OSError as error:
            self._walker.fail(path, error)

    def _below(self, seen: Seen, depth: int) -> None:
        fd = open_directory(seen.here, seen.name)
        try:
            self._walker.enter(seen, fd)
            for name in os.listdir(fd):
                inner = f"{seen.path}/{name}" if seen.path else name
                self.tree(fd, name, inner, depth + 1)
        finally:
            os.close(fd)
