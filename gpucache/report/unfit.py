"""What in a root does not fit how the root is shared: other modes, another group, no default ACL. Changes nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from gpucache.disk.default_acl import has_any_default_acl, has_default_acl, may_have_default_acl
from gpucache.disk.shared_modes import Inside, LinkedFiles, Wanted, is_cached, is_reached
from gpucache.disk.walking import Seen, walk
from gpucache.disk.within import Straight
from gpucache.findings import Finding
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing


class Others(Value):
    """What one other user owns in a root that does not fit, and that only that user changes.

    In a root that others may read, that is all that others get to.
    """

    uid: int
    count: int
    example: str
    """The path of one such directory or file."""


class Unfit(Value, kw_only=True):
    """What in a root does not fit."""

    directories: int = 0
    """How many of one user's directories have another mode or group, or want a default ACL."""
    files: int = 0
    """How many of that user's files have another mode or group; a file with several names is one."""
    bytes: int = 0
    """The sizes of these files."""
    outside_files: int = 0
    """How many more such files there are that have a name outside the root as well."""
    outside_bytes: int = 0
    example: str | None = None
    """The path of one of that user's directories or files."""
    others: tuple[Others, ...] = ()
    cached_files: int = 0
    """How many names the root has of what is cached, whether or not that fits."""
    left: tuple[str, ...] = ()
    """The names of what lies in the root and is no cache, of which nothing is asked."""
    is_whole: bool = True
    """Whether everything was looked at."""


CODES = {
    "mixed-modes": "in a shared root there is something that others cannot use, or could use and should not",
    "others-mixed-modes": "the same, of what belongs to another user, who alone can mend that",
}
"""The codes of what does not fit, and what each means."""


def findings(root: str, sharing: Sharing, most: int | None = None) -> Iterator[Finding]:
    """Find what does not fit in a root, a real path, that is shared so, with the one command that mends that.

    ``most`` is as for `look`. Of a private root nothing is asked: its directory shuts all others out.
    """
    if sharing == "private":
        return
    found = os.stat(root)
    gid = found.st_gid if sharing == "group" else None
    acl = sharing == "group" and may_have_default_acl(root)
    # Root mends what is the owner's, as that user.
    uid = found.st_uid if os.geteuid() == 0 else os.geteuid()
    unfit = look(root, Wanted(sharing, gid, acl), uid, most)
    command = f"`gpucache provision --shared {sharing} --root {shlex.quote(root)}`"
    if unfit.example is not None and unfit.directories + unfit.files:
        least = "" if unfit.is_whole else "at least "
        fact = (
            f"{least}{unfit.directories} directories and {unfit.files} files have modes, a group or an ACL by which "
            "others cannot use them as the root is shared"
        )
        yield Finding("mixed-modes", "warning", unfit.example, fact, f"run {command}")
    for other in unfit.others:
        fact = f"{other.count} directories and files of uid {other.uid} do not fit how the root is shared"
        # What a group's member left in a root that others read, its owner takes out of there.
        who = found.st_uid if sharing == "read" else other.uid
        fix = f"run {command}" if who == os.geteuid() else f"have uid {who} run {command}"
        yield Finding("others-mixed-modes", "warning", other.example, fact, fix)


def look(root: str, wanted: Wanted, uid: int, most: int | None = None) -> Unfit:
    """Find what does not fit in a root, a real path: of one user, and of others. Follows no link.

    ``most`` is how many directories and files are looked at; by default all are.

    Raises:
        OSError: the root cannot be looked at.
    """
    looking = _Look(root, wanted, uid, most)
    with Straight() as disk:
        walk(root, disk, looking)
    return looking.result()


class _Look(Inside):
    """Counts what does not fit."""

    def __init__(self, root: str, wanted: Wanted, uid: int, most: int | None) -> None:
        super().__init__(root)
        self._wanted = wanted
        self._uid = uid
        self._owner = os.stat(root).st_uid
        self._most = most
        self._seen = 0
        self._directories = self._files = self._bytes = self._cached_files = 0
        self._fits = True
        """Whether what was seen last fits."""
        self._linked = LinkedFiles(wanted)
        self._example: str | None = None
        self._others: dict[int, tuple[int, str]] = {}
        """By user: how many things do not fit, and the path of one."""

    @property
    def _is_enough(self) -> bool:
        return self._most is not None and self._seen >= self._most

    def see(self, seen: Seen) -> bool:
        """As `walking.Walker.see`."""
        if self._is_enough or not self.has(seen):
            return False
        self._seen += 1
        found = seen.found
        self._cached_files += seen.is_file and is_cached(seen.path)
        self._fits = self._wanted.fits(seen.path, found)
        if found.st_uid != self._uid:
            self._note_others(seen)
        elif seen.is_file and found.st_nlink > 1:
            self._linked.add(seen)
        elif not self._fits:
            self._note(seen)
        return True

    def enter(self, seen: Seen, fd: int) -> None:
        """As `walking.Walker.enter`."""
        if not self._fits or seen.found.st_uid != self._uid:
            return
        if self._wanted.sharing != "group":
            is_odd = has_any_default_acl(fd)
        else:
            is_odd = self._wanted.wants_acl(seen.path) and not has_default_acl(fd)
        if is_odd:
            self._note(seen)

    def fail(self, path: str, error: OSError) -> None:
        """As `walking.Walker.fail`: what is closed has a mode that does not fit, which was counted."""

    def _note(self, seen: Seen) -> None:
        self._example = self._example or self._path(seen.path)
        if seen.is_directory:
            self._directories += 1
        else:
            self._files += 1
            self._bytes += seen.found.st_size

    def _note_others(self, seen: Seen) -> None:
        is_right = self._fits
        is_owners = seen.found.st_uid in (self._owner, 0)  # whom a reader may be told of
        if self._wanted.sharing == "read" and not is_owners:
            is_right = not is_reached(seen.path)  # whatever the mode, its maker could change it
        if is_right:
            return
        count, example = self._others.get(seen.found.st_uid, (0, self._path(seen.path)))
        self._others[seen.found.st_uid] = (count + 1, example)

    def _path(self, below: str) -> str:
        return f"{self.root}/{below}" if below else self.root

    def result(self) -> Unfit:
        """What was found."""
        inside: list[int] = []
        outside: list[int] = []
        for linked in self._linked.unfit():
            self._example = self._example or self._path(linked.path)
            sizes = outside if linked.is_outside else inside
            sizes.append(linked.size_bytes)
        others = [Others(uid, *noted) for uid, noted in sorted(self._others.items())]
        return Unfit(
            directories=self._directories,
            files=self._files + len(inside),
            bytes=self._bytes + sum(inside),
            outside_files=len(outside),
            outside_bytes=sum(outside),
            example=self._example,
            others=tuple(others),
            cached_files=self._cached_files,
            left=tuple(sorted(self.left)),
            is_whole=not self._is_enough,
        )
