"""Change with whom a root is shared, and mend a root whose modes do not fit: a plan, which is shown, and then the act.

What the root's user owns is changed; what belongs to others stays, and is named. A file that has a name outside the
root as well (a view in a device directory elsewhere, what was adopted from ``~/.triton/cache``, a backup of hard links)
is copied first, since its modes are those of each of its names. What is no cache stays.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from gpucache.disk.default_acl import (
    default_acl,
    has_default_acl,
    remove_default_acl,
    set_default_acl,
)
from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import make_below_root, make_root, write_whole
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import locked
from gpucache.disk.refusal import refusal
from gpucache.disk.shared_modes import GROUP_ACL, Inside, Linked, LinkedFiles, Wanted, is_cached
from gpucache.disk.sharing import mark_of, mark_text
from gpucache.disk.vetting import Trust, vet
from gpucache.disk.walking import Seen, walk
from gpucache.disk.within import Straight
from gpucache.errors import LockTimeoutError, SharingError
from gpucache.layout import paths
from gpucache.upkeep.linked_outside import LinkedOutside
from gpucache.upkeep.mode_change import change
from gpucache.upkeep.sharing_group import check_member, group_id, working_as
from gpucache.upkeep.sharing_trial import tried
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing

    Show = Callable[[int, int], None]

_LOCK = "sharing.lock"
_MOST_PASSES = 10
_PATIENCE_S = 20.0
"""For how long a change waits for compiles whose entries it has to copy."""
_LOOK_S = 0.5
_WAIT_S = 60.0
"""For how long a change waits for another one."""
_MOST_FAILURES = 1000


class Others(Value):
    """What one other user owns in a root, and what therefore stays as it is, although it does not fit."""

    uid: int
    count: int
    example: str
    """The path of one such directory or file."""


class Resharing(Value, kw_only=True):
    """How a root is to be shared, and what that changes: a plan, as the root was found."""

    root: str
    """A real path."""
    before: Sharing
    """What the mark of the root says."""
    gid_before: int
    """The group of the root's directory."""
    wanted: Wanted
    uid: int
    """Whose directories and files are changed."""
    directories: int = 0
    """How many of them have another mode or group, or want a default ACL."""
    files: int = 0
    """How many of them have another mode or group; a file with several names is one."""
    bytes: int = 0
    """The sizes of these files."""
    copied_files: int = 0
    """How many of them have a name outside the root, and are copied."""
    copied_bytes: int = 0
    shared_links: int = 0
    """How many files stay as they are since another member could have linked them into the root from outside."""
    cached_files: int = 0
    """How many names the root has of what is cached, whoever owns that and whether or not it changes."""
    others: tuple[Others, ...] = ()
    left: tuple[str, ...] = ()
    """The names of what lies in the root and is no cache; this stays as it is."""

    @property
    def changes_mark(self) -> bool:
        """Whether the root comes to be shared with others than before."""
        is_other_group = self.wanted.gid not in (None, self.gid_before)
        return self.before != self.wanted.sharing or is_other_group

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to do."""
        return self.changes_mark or bool(self.directories or self.files)


class Failure(Value):
    """What could not be changed, and why."""

    path: str
    why: str


class Reshared(Value, kw_only=True):
    """What was changed."""

    directories: int
    files: int
    copied_files: int
    busy: int = 0
    """How many files are still to be copied since their keys are locked. Then the root has no mark yet, and the same
    call goes on."""
    failures: tuple[Failure, ...] = ()
    """What stays as it was although it is this user's; another try of the same may do better."""


# ---- planning


def plan(
    root: str, sharing: Sharing, group: str | None = None, trust: Trust | None = None
) -> Resharing:
    """Look what changes where a root comes to be shared so, or is shared so and is to be mended. Changes nothing.

    ``group`` is the name or id of the group; without it, that of the root's directory. Where root asks for the root of
    another user, it is that user's directories and files that change, with no more rights than that user's. One thing
    is made for a moment, to see what the mount can do. ``trust`` is with which the way to the root is looked at.

    Raises:
        SharingError: it cannot be done: the group or its member, the owner of the root, or the mount forbids it.
        UnsafeDirectoryError: somebody else could put another directory in the place of the root.
        OSError: the root cannot be looked at.
    """
    real = os.path.realpath(root)
    found = os.stat(real)
    mark = mark_of(real)
    before = "private" if mark is None else mark.sharing
    gid = None
    if sharing == "group":
        gid = found.st_gid if group is None else group_id(real, group)
    uid = found.st_uid if os.geteuid() == 0 else os.geteuid()
    is_changed = before != sharing or gid not in (None, found.st_gid)
    if uid != found.st_uid and is_changed:
        raise _not_the_owner(real, found.st_uid, sharing)
    if gid is not None:
        check_member(real, uid, gid)
    with working_as(uid, found.st_gid if gid is None else gid):
        vet(real, (trust or Trust()).in_root(real))
        acl = tried(real, sharing, gid)
        wanted = Wanted(sharing, gid, acl)
        look = _Look(real, wanted, uid, before, found.st_gid)
        with Straight() as disk:
            walk(real, disk, look)
    return look.result()


def make_for_group(root: str, group: str) -> None:
    """Make a root, or take an empty directory of this user's, that is to be shared with a group.

    Raises:
        SharingError: there is no such group, or this user is no member.
        ProvisionError: the operating system refused.
    """
    gid = group_id(root, group)
    check_member(root, os.geteuid(), gid)
    make_root(root)
    try:
        fd = os.open(os.path.realpath(root), DIRECTORY)
        try:
            if os.fstat(fd).st_gid != gid:
                os.fchown(fd, -1, gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise refusal(root, error, "share") from error


def _not_the_owner(root: str, owner: int, sharing: Sharing) -> SharingError:
    fact = f"belongs to uid {owner}, and only its owner may share it with others than now"
    hint = f"have uid {owner} say `gpucache provision --shared {sharing} --root {root}`"
    return SharingError(root, "not-the-owner", fact, hint)


class _Look(Inside):
    """Counts what is to be changed."""

    def __init__(
        self, root: str, wanted: Wanted, uid: int, before: Sharing, gid_before: int
    ) -> None:
        super().__init__(root)
        self._gid_before = gid_before
        self._cached_files = 0
        self._wanted = wanted
        self._uid = uid
        self._before = before
        self._directories = self._files = self._bytes = 0
        self._fits = True
        self._linked = LinkedFiles(wanted)
        self._others: dict[int, list[int | str]] = {}

    def see(self, seen: Seen) -> bool:
        """As `walking.Walker.see`."""
        if not self.has(seen):
            return False
        found = seen.found
        self._cached_files += seen.is_file and is_cached(seen.path)
        self._fits = self._wanted.fits(seen.path, found)
        if found.st_uid != self._uid:
            self._note_others(seen)
        elif seen.is_file and found.st_nlink > 1:
            self._linked.add(seen)
        elif seen.is_directory:
            self._directories += not self._fits
        elif not self._fits:
            self._files += 1
            self._bytes += found.st_size
        return True

    def enter(self, seen: Seen, fd: int) -> None:
        """As `walking.Walker.enter`."""
        if not self._fits or seen.found.st_uid != self._uid:
            return
        if self._wanted.wants_acl(seen.path) and not has_default_acl(fd):
            self._directories += 1

    def fail(self, path: str, error: OSError) -> None:
        """As `walking.Walker.fail`: what is closed has a mode that does not fit, which was counted."""

    def _note_others(self, seen: Seen) -> None:
        if self._fits:
            return
        path = f"{self.root}/{seen.path}" if seen.path else self.root
        other = self._others.setdefault(seen.found.st_uid, [0, path])
        other[0] = int(other[0]) + 1

    def result(self) -> Resharing:
        """What was found."""
        changing, copied, staying = [], [], 0
        may_copy = _may_copy(self._before, self._wanted.sharing)
        for linked in self._linked.unfit():
            size = linked.found.st_size
            if linked.is_outside and not may_copy:
                staying += 1
                continue
            changing.append(size)
            if linked.is_outside:
                copied.append(size)
        others = []
        for uid, (count, example) in sorted(self._others.items()):
            others.append(Others(uid, int(count), str(example)))
        return Resharing(
            root=self.root,
            before=self._before,
            gid_before=self._gid_before,
            cached_files=self._cached_files,
            wanted=self._wanted,
            uid=self._uid,
            directories=self._directories,
            files=self._files + len(changing),
            bytes=self._bytes + sum(changing),
            copied_files=len(copied),
            copied_bytes=sum(copied),
            shared_links=staying,
            others=tuple(others),
            left=tuple(sorted(self.left)),
        )


def _may_copy(before: Sharing, after: Sharing) -> bool:
    """Whether a file that is linked from outside may be copied to where others read the copy.

    Into a group's root another member may have linked any file of the owner's that this member can reach (where the
    kernel allows it: ``fs.protected_hardlinks=0``), and a copy would be the group's to read.
    """
    return before != "group" or after == "private"


# ---- the act


def apply(planned: Resharing, show: Show | None = None) -> Reshared:
    """Change a root as planned. ``show`` is told after each pass how many passes are done, of how many at most.

    Beside any processes that use the root; killed at any instant, the same call goes on where it was.

    Raises:
        SharingError: another process is at the same.
        GpuCacheError, OSError: the mark cannot be written, or the root not be looked at.
    """
    gid = planned.wanted.gid
    group = os.stat(planned.root).st_gid if gid is None else gid
    with ExitStack() as stack:
        stack.enter_context(working_as(planned.uid, group))
        disk = stack.enter_context(Straight())
        stack.enter_context(_alone(planned.root, disk))
        return _Act(planned, disk).run(show)


def _alone(root: str, disk: Straight) -> ExitStack:
    """Hold the lock of such changes, once those before are done: often all ranks of a job ask for the same."""
    stack = ExitStack()
    for part in ("locks", "tmp"):
        make_below_root(paths.ours(root, part))  # of a root that torch has made
    path = f"{LockPlace(root, disk).directory()}/{_LOCK}"
    try:
        stack.enter_context(locked(path, timeout_s=_WAIT_S))
    except LockTimeoutError as error:
        fact = f"is being changed by {error.holder}"
        raise SharingError(root, "at-work", fact, "wait for that process, or stop it") from None
    return stack


class _Act:
    """One change of a root."""

    def __init__(self, planned: Resharing, disk: Straight) -> None:
        self._planned = planned
        self._disk = disk
        self._directories = self._files = self._copied = 0

    def run(self, show: Show | None) -> Reshared:
        """Change the root.

        The order is the proof that nobody is let in who should not be, and nothing is forgotten:

        1. Where fewer are to use the root, or others, the mark goes first. From then on no process believes a file that
           is another user's, whatever the modes say, and who was let in by the mark is refused by name of the root's
           owner. Killed later, the root is its owner's alone, and parts of it are open to people who do not use it.
        2. Each directory is changed before its names are listed, from the root on (`walking`). So the root itself shuts
           out or lets in; and what is made in a directory after its change has the right modes, since those are the
           directory's (`disk.sharing`), while what was made before is on the list.
        3. Beside that, a rank may have looked at a directory before its change and have put something into it after the
           listing; or it may have moved a file, from where it was still to be changed to where all was changed. So a
           pass follows upon each that changed something. What a rank looks at after the first pass is right already.
           What it looked at before, it has finished by the second, unless it stood still meanwhile.
        4. Where more are to use the root, the mark comes last: nobody believes it before all is as it says. Killed
           before, the others are refused as ever, and the root's owner works on.
        """
        wanted, root = self._planned.wanted, self._planned.root
        if self._withdraws():
            self._forget_mark()
        last = self._passes(show)
        if wanted.sharing == "private":
            self._forget_mark()
        elif mark_of(root) is None and not last.busy:
            write_whole(paths.mark_path(root), mark_text(wanted.sharing), paths.ours(root, "tmp"))
        return Reshared(
            directories=self._directories,
            files=self._files,
            copied_files=self._copied,
            busy=last.busy,
            failures=tuple(Failure(path, why) for path, why in sorted(last.failures.items())),
        )

    def _passes(self, show: Show | None) -> _Pass:
        """Walk the root until nothing is to be changed any more; the last walk."""
        deadline = time.monotonic() + _PATIENCE_S
        number = 0
        while True:
            one = _Pass(self._planned, self._disk)
            one.run()
            number += 1
            self._directories += one.directories
            self._files += one.files
            self._copied += one.copied
            if show is not None:
                show(number, number + 1)
            if one.busy and not one.changed and time.monotonic() < deadline:
                time.sleep(_LOOK_S)  # a compile has the key's lock
                continue
            if not one.changed or number >= _MOST_PASSES:
                return one

    def _withdraws(self) -> bool:
        """Whether some who could use the root, or another group, are to use it no more."""
        planned = self._planned
        return planned.changes_mark and planned.before != "private"

    def _forget_mark(self) -> None:
        try:
            self._disk.unlink(paths.mark_path(self._planned.root))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise


class _Pass(Inside):
    """One walk over the root, which changes all that does not fit."""

    def __init__(self, planned: Resharing, disk: Straight) -> None:
        super().__init__(planned.root)
        self._planned = planned
        self._wanted = planned.wanted
        self._disk = disk
        self.directories = self.files = self.copied = 0
        self.failures: dict[str, str] = {}
        """What could not be changed, by path: why."""
        self.busy = 0
        """How many files are to be copied whose key was locked."""
        self._linked = LinkedFiles(self._wanted)
        self._was_changed = False
        """Whether the directory that was seen last was changed."""

    @property
    def changed(self) -> int:
        """How many directories and files this pass has changed."""
        return self.directories + self.files + self.copied

    def run(self) -> None:
        """Change all that does not fit."""
        walk(self.root, self._disk, self)
        outside = self._change_linked()
        if outside and _may_copy(self._planned.before, self._wanted.sharing):
            copying = LinkedOutside(self.root, self._disk, self._wanted, self._planned.uid, outside)
            self.copied += copying.copy(self.fail)
            self.busy = copying.busy

    def see(self, seen: Seen) -> bool:
        """As `walking.Walker.see`."""
        if not self.has(seen):
            return False
        found = seen.found
        self._was_changed = False
        if found.st_uid != self._planned.uid:
            return True
        if seen.is_file and found.st_nlink > 1:
            self._linked.add(seen)
        elif self._wanted.fits(seen.path, found):
            return True
        elif seen.is_directory:
            self._was_changed = change(seen, self._wanted, self._planned.uid)
            self.directories += self._was_changed
        else:
            self.files += change(seen, self._wanted, self._planned.uid)
        return True

    def enter(self, seen: Seen, fd: int) -> None:
        """As `walking.Walker.enter`: a directory's default ACL is changed before what is made in it is listed."""
        if os.fstat(fd).st_uid != self._planned.uid:
            return
        changed = False
        if self._wanted.sharing != "group":
            changed = remove_default_acl(fd)
        elif self._wanted.wants_acl(seen.path) and default_acl(fd) != GROUP_ACL:
            changed = set_default_acl(fd, GROUP_ACL, tried=True)
        self.directories += changed and not self._was_changed

    def fail(self, path: str, error: OSError) -> None:
        """As `walking.Walker.fail`."""
        if len(self.failures) < _MOST_FAILURES:
            self.failures[path] = error.strerror or str(error)

    def _change_linked(self) -> set[int]:
        """Change the files of which all names were found; return the inodes of the others."""
        outside = set()
        for linked in self._linked.unfit():
            try:
                if linked.is_outside or not self._changed_by_path(linked):
                    outside.add(linked.found.st_ino)
            except OSError as error:
                self.fail(linked.path, error)
        return outside

    def _changed_by_path(self, linked: Linked) -> bool:
        """Change a file of which all names are in the root; return False where it has got others meanwhile."""

        def act(here: int, name: str) -> bool:
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if found.st_ino != linked.found.st_ino:
                return True  # replaced meanwhile: the next pass sees what is there now
            seen = Seen(here, name, linked.path, found)
            done = change(seen, self._wanted, self._planned.uid, linked.names)
            self.files += done
            return done

        try:
            return self._disk.act(f"{self.root}/{linked.path}", act)
        except FileNotFoundError:
            return True
