"""The recipes that ``gpucache run --warm auto`` has recorded of each command: ``recipes/<command>.<writer>.recipes``.

A program cannot be asked how it ended, since `run` has become it. So nothing is moved when it ends: each run has a file
of its own, which names the process that writes it, and the next run chooses among what is there. That is the newest
with a recipe in it; and where this is less than half as long as another, as of a run that died early, that one as well.

On a node one process at a time records a command: of several ranks the first. Nodes that share a root record apart, and
each may take what another has left.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress

from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import make_below_root
from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.processes import is_running, pid_namespace, this_process
from gpucache.disk.sharing import new_file
from gpucache.disk.vetting import Trust, is_groups, vet_child, vet_file
from gpucache.errors import UnsafeDirectoryError
from gpucache.layout.paths import ours
from gpucache.values import Value
from gpucache.warm.ahead.recipe_summary import has_recipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_FILES = 20
"""So many files of ours lie in ``recipes``, those of keys too; the oldest go."""
_NAME = re.compile(
    r"([0-9a-f]{16})\.([0-9a-f]{8})\.([0-9]{1,20})\.([0-9]{1,10})\.([0-9]{1,20})\.recipes"
)
_OURS = re.compile(rf"{_NAME.pattern}|[0-9a-f]{{16}}\.keys", re.ASCII)


class Recording(Value):
    """A file of recipes of one run."""

    path: str
    size: int
    modified: float
    """In seconds since the epoch."""
    is_live: bool
    """Whether its writer runs, on this node."""
    may_grow: bool
    """Whether its writer may still be at it: it runs, or cannot be seen from here and the file is of this day."""


def recordings(root: str, command: str, trust: Trust) -> list[Recording]:
    """What runs of a command have recorded, newest first; without what nobody may trust. The root has been vetted."""
    directory = ours(root, "recipes")
    try:
        vet_child(directory, trust)
        names = os.listdir(directory)
    except (UnsafeDirectoryError, OSError):
        return []
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match[1] != command:
            continue
        with suppress(UnsafeDirectoryError, OSError):
            found.append(_recording(f"{directory}/{name}", match, trust))
    return sorted(found, key=_modified, reverse=True)


def last(found: Sequence[Recording]) -> list[str]:
    """The paths of those among a command's recordings whose recipes are the last that are worth something."""
    good = [one for one in found if has_recipe(one.path)]
    if not good:
        return []
    longest = max(good, key=_size)
    if good[0].size * 2 < longest.size:
        return [good[0].path, longest.path]
    return [good[0].path]


def begin(root: str, command: str, trust: Trust) -> str | None:
    """Make the file into which this process will record; None where another one of this node is at it.

    Removes what no later run would take. Whoever calls this holds a lock that all of this node take for this command.

    Raises:
        OSError, GpuCacheError: the file cannot be made.
    """
    this = this_process()
    if this is None:
        raise OSError("there is no /proc to know this process by")
    found = recordings(root, command, trust)
    if any(one.is_live for one in found):
        return None
    kept = last(found)
    useless = [_name(one) for one in found if not one.may_grow and one.path not in kept]
    directory = ours(root, "recipes")
    make_below_root(directory)
    vet_child(directory, trust)
    here = os.open(directory, DIRECTORY)
    try:
        for name in useless:
            with suppress(OSError):
                os.unlink(name, dir_fd=here)
        _bound(here, {os.path.basename(path) for path in kept})
        pid, start = this
        name = f"{command}.{node_id()}.{pid_namespace()}.{pid}.{start}.recipes"
        os.close(new_file(name, os.O_WRONLY, here))
        return f"{directory}/{name}"
    finally:
        os.close(here)


def bound(root: str) -> None:
    """Remove the oldest of the files in ``recipes`` if there are more than `MOST_FILES`. Never raises."""
    with suppress(OSError):
        here = os.open(ours(root, "recipes"), DIRECTORY)
        try:
            _bound(here, set(), MOST_FILES)
        finally:
            os.close(here)


def _bound(here: int, kept: set[str], most: int = MOST_FILES - 1) -> None:
    """Remove the oldest so that no more are left than may be; what is another user's, a link or no file of ours stays.

    In a root that a group shares, what is a member's goes too.

    A file that a program of this node writes is left too, and so are those in ``kept``.
    """
    ages = []
    is_shared = is_groups(os.fstat(here).st_mode)
    for name in os.listdir(here):
        if _OURS.fullmatch(name) is None:
            continue
        with suppress(OSError):
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and (is_shared or found.st_uid == os.geteuid()):
                ages.append((found.st_mtime, name))
    too_many = len(ages) - most
    for _, name in sorted(ages):
        if too_many <= 0:
            return
        match = _NAME.fullmatch(name)
        if name in kept or (match is not None and _writes_here(match)):
            continue
        with suppress(OSError):
            os.unlink(name, dir_fd=here)
            too_many -= 1


def _recording(path: str, match: re.Match[str], trust: Trust) -> Recording:
    """Look at a file.

    Raises:
        UnsafeDirectoryError: another user may have planted it.
        OSError: it is gone.
    """
    vet_file(path, trust)
    found = os.lstat(path)
    is_live = _writes_here(match)
    is_seen = match[2] == node_id() and int(match[3]) == pid_namespace()
    is_fresh = time.time() - found.st_mtime < DAY_S
    may_grow = is_live or (is_fresh and not is_seen)
    return Recording(path, found.st_size, found.st_mtime, is_live, may_grow)


def _writes_here(match: re.Match[str]) -> bool:
    """Whether a file's writer runs on this node, where this process can see it."""
    if match[2] != node_id() or int(match[3]) != pid_namespace():
        return False
    return is_running((int(match[4]), int(match[5])))


def _name(recording: Recording) -> str:
    return os.path.basename(recording.path)


def _modified(recording: Recording) -> float:
    return recording.modified


def _size(recording: Recording) -> int:
    return recording.size
