"""Which mode, group and default ACL each thing in a root has, by with whom the root is shared: pure rules.

What gpucache makes gets its mode by the directory in which it is made (`disk.sharing`). These rules are for whoever
changes a root that is there already, or looks for what in it does not fit.
"""

from __future__ import annotations

import os
import stat

from gpucache.disk.files import STAGED
from gpucache.disk.sharing import GROUP, MODES, PRIVATE, READABLE
from gpucache.layout import inductor, paths
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from gpucache.disk.sharing import Modes, Sharing
    from gpucache.disk.walking import Seen

    class HasMode(Protocol):
        """What `os.stat` says of mode and group."""

        @property
        def st_mode(self) -> int: ...  # noqa: D102  # as of `os.stat_result`
        @property
        def st_gid(self) -> int: ...  # noqa: D102


GROUP_ACL = 0o770
_JIT = "jit"
_TRITON = "triton"
_GPUCACHE = "gpucache"
_MEMBERS = "members"
_QUARANTINED = f"{_GPUCACHE}/v1/quarantine/"
_OPEN_PARTS = (*READABLE, paths.MARK)
_ALL_MAY_READ = 0o444
_ALL_MAY_RUN = 0o111
_OTHERS_MAY_WRITE = 0o022
_MORE_THAN_PERMISSIONS = 0o7000
_FILES = (os.path.basename(paths.tag_path("")), paths.SETTINGS)
"""What gpucache and its user have directly in a root."""
_SURELY_INDUCTORS = ("fxgraph", "aotautograd")
_MOST_FILES = 1000
_BEING_WRITTEN = f"gpucache/v1/tmp/{STAGED}"


class Wanted(Value):
    """What every directory and file of a root is to be."""

    sharing: Sharing
    gid: int | None = None
    """The group, of a root that is a group's; else any."""
    acl: bool = False
    """Whether directories in which other programs write are to have a default ACL."""

    def mode(self, path: str, found: HasMode) -> int:
        """The mode of a directory or file at a path below the root. Who may read a program may run the program."""
        modes = modes_at(self.sharing, path)
        if stat.S_ISDIR(found.st_mode):
            return modes.directory
        if found.st_mode & stat.S_IXUSR:
            return modes.file | (modes.file & _ALL_MAY_READ) >> 2
        return modes.file

    def fits(self, path: str, found: HasMode) -> bool:
        """Whether the mode and the group are as they are to be.

        What lies in the quarantine of a *read* root was published, and has the modes of that: nobody else gets there.
        """
        if self.sharing == "read" and path.startswith(_QUARANTINED):
            return True
        if self.gid is not None and found.st_gid != self.gid:
            return False
        if stat.S_IMODE(found.st_mode) == self.mode(path, found):
            return True
        return self._suffices(path, found)

    def _suffices(self, path: str, found: HasMode) -> bool:
        """Whether a mode that its compiler and a umask have made of a JIT's file or directory is as good as the root's.

        A linker lets all run a library, and closes that to a group by umask 077, whatever a default ACL says; who may
        read a library may load it. What lies in ``jit`` of a *read* root is behind the mode of ``jit``.
        """
        mode = stat.S_IMODE(found.st_mode)
        if self.sharing == "group":
            is_readable = mode & ~_ALL_MAY_RUN == GROUP.file
            return is_readable and stat.S_ISREG(found.st_mode) and is_written_by_others(path)
        wanted = PRIVATE.directory if stat.S_ISDIR(found.st_mode) else PRIVATE.file
        is_behind = self.sharing == "read" and path.startswith(f"{_JIT}/")
        is_closed = not mode & (_OTHERS_MAY_WRITE | _MORE_THAN_PERMISSIONS)
        return is_behind and is_closed and mode & wanted == wanted

    def wants_acl(self, path: str) -> bool:
        """Whether a directory is to have a default ACL: torch, stock Triton and other JITs make something in it."""
        return self.acl and is_written_by_others(path)


def modes_at(sharing: Sharing, path: str) -> Modes:
    """The modes at a path below a root that is shared so.

    In a root that others may read, they may read what its owner publishes: whoever can read any other file, of the
    locks for one, could hold a lock on it.
    """
    if sharing != "read":
        return MODES[sharing]
    return MODES["read"] if is_published(path) else PRIVATE


def is_published(path: str) -> bool:
    """Whether what is at a path below a root is there for readers, where the root has any."""
    part = path.split("/")
    if part[0] == _GPUCACHE:
        return len(part) <= 2 or part[2] in _OPEN_PARTS
    return part[0] in ("", _TRITON, *_FILES)


def is_reached(path: str) -> bool:
    """Whether a user whom nobody has shut out gets to what is at a path below a root that all may read."""
    return "/" not in path or is_published(path)


def is_written_by_others(path: str) -> bool:
    """Whether other programs than gpucache write into a directory, by its path below the root."""
    part = path.split("/")
    if part[0] == _TRITON:
        return len(part) <= 2
    return part[0] not in (_GPUCACHE, _MEMBERS)


def is_cached(path: str) -> bool:
    """Whether a file below the root is something cached, by its path, and not what gpucache keeps beside that."""
    part = path.split("/")
    if part[0] == _GPUCACHE:
        return len(part) > 2 and part[2] in ("store", "quarantine")
    return len(part) > 1


def is_looked_at(path: str) -> bool:
    """Whether something below a root has the root's modes.

    What lies in a member's own directory has that member's. A file that is still being written is its writer's, who
    gives it its mode before its name.
    """
    part = path.split("/")
    if part[0] == _MEMBERS:
        return len(part) == 1
    return not path.startswith(_BEING_WRITTEN)


class Linked:
    """A file with several names, of which a walk has found some."""

    # The stat_result itself would be twenty objects more to keep, of each file of a store.
    __slots__ = ("links", "names", "number", "path", "size_bytes", "st_gid", "st_mode")

    def __init__(self, path: str, found: os.stat_result) -> None:
        self.path = path
        """One of the names, below the root: one by which others may read the file, if any is."""
        self.number = found.st_ino
        self.links = found.st_nlink
        self.size_bytes = found.st_size
        self.st_mode = found.st_mode
        self.st_gid = found.st_gid
        self.names = 0
        """How many were found."""

    @property
    def is_outside(self) -> bool:
        """Whether a name was not found: it is no name in the cache."""
        return self.names < self.links


class LinkedFiles:
    """The files with several names that a walk has found and that do not fit, by inode."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._files: dict[int, Linked] = {}

    def add(self, seen: Seen) -> None:
        """Count one name of a file.

        In a root that others may read, a file may have a name that they may reach and another that they may not: what
        is being packed, for one. So there each name counts, whether or not the file fits by that name.
        """
        found = seen.found
        if self._wanted.sharing != "read" and self._wanted.fits(seen.path, found):
            return
        linked = self._files.get(found.st_ino)
        if linked is None:
            linked = self._files[found.st_ino] = Linked(seen.path, found)
        linked.names += 1
        if modes_at(self._wanted.sharing, linked.path) == PRIVATE:
            linked.path = seen.path

    def unfit(self) -> list[Linked]:
        """Those that are to be changed."""
        files = self._files.values()
        return [one for one in files if not self._wanted.fits(one.path, one)]


class Inside:
    """What is a cache's below a root: a walker's answer to what it is to look into."""

    def __init__(self, root: str) -> None:
        """``root`` is a real path."""
        self.root = root
        self.left: list[str] = []
        """The names of what lies directly in the root and is no cache."""

    def has(self, seen: Seen) -> bool:
        """Whether something has the root's modes: a directory or regular file of the cache."""
        is_top = bool(seen.path) and "/" not in seen.path
        if is_top and not is_part(self.root, seen.name):
            self.left.append(seen.name)
            return False
        return is_looked_at(seen.path) and (seen.is_directory or seen.is_file)


def is_part(root: str, name: str) -> bool:
    """Whether a name directly in a root is a cache's, so that its modes are the root's to tell.

    ``root`` is a path by which no link leads away while this looks. A root may be a directory in which its user has
    more: of that nobody else is to read anything because a cache is shared.
    """
    if name in (_TRITON, _GPUCACHE, _MEMBERS, _JIT, *_SURELY_INDUCTORS):
        return True
    if name in _FILES:
        return True
    return _is_inductors(root, name)


def _is_inductors(root: str, name: str) -> bool:
    """Whether a directory is TorchInductor's: by its name, and by the names of the files in it."""
    if inductor.bucket(name) not in ("code", "locks", "cache", "precompiled_headers"):
        return False
    try:
        with os.scandir(f"{root}/{name}") as items:
            for item, _ in zip(items, range(_MOST_FILES), strict=False):
                if inductor.is_cache(f"{name}/{item.name}"):
                    return True
    except OSError:
        return False
    return False
