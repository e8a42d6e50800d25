"""Change with whom a root is shared, as `reshare.plan` has it: the order of the mark, the modes and the passes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from gpucache.disk.default_acl import default_acl, remove_default_acl, set_default_acl
from gpucache.disk.door import SAFELY
from gpucache.disk.files import STAGED
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import SHARING_LOCK, locked
from gpucache.disk.shared_modes import GROUP_ACL, Inside, Linked, LinkedFiles
from gpucache.disk.sharing import mark_of, mark_text
from gpucache.disk.walking import Seen, walk
from gpucache.disk.within import Straight
from gpucache.errors import LockTimeoutError, SharingError
from gpucache.layout import paths
from gpucache.upkeep.linked_outside import LinkedOutside
from gpucache.upkeep.mode_change import change
from gpucache.upkeep.reshare import Resharing, may_copy
from gpucache.upkeep.sharing_group import working_as
from gpucache.upkeep.taken_back import make, make_parts, take_back
from gpucache.values import Value

Show = Callable[[int, int], None]

_MOST_PASSES = 10
_PATIENCE_S = 20.0
"""For how long a change waits for compiles whose entries it has to copy."""
_LOOK_S = 0.5
_WAIT_S = 60.0
"""For how long a change waits for another one."""
_MOST_FAILURES = 1000
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY
_MARK = os.path.relpath(paths.mark_path("/"), "/")


class Failure(Value):
    """What could not be changed, and why."""

    path: str
    why: str


class Reshared(Value, kw_only=True):
    """What was changed."""

    directories: int
    files: int
    copied_files: int
    uncopied: int = 0
    """How many files are still to be copied: their keys are locked, or the disk is full. Then the root has no mark yet,
    and the same call goes on."""
    failures: tuple[Failure, ...] = ()
    """What stays as it was although it is this user's; another try of the same may do better."""


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
    for path in paths.provisioned_directories(root):
        make(path, disk)  # in a root that torch has made
    path = f"{LockPlace(root, disk).directory()}/{SHARING_LOCK}"
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

        1. Where fewer are to use the root, or others, the mark goes first. From then on a process that starts refuses
           the root, or directories in it, of another user, whatever the modes say, and says whose they are. Killed
           later, the root is its owner's alone, and `doctor` tells that its modes say otherwise.
        2. Each directory is changed before its names are listed, from the root on (`walking`). So the root's own mode,
           the first, shuts out from all that is in it, or lets in; and what is made in a directory after its change has
           the right modes, since those are the directory's (`disk.sharing`), while what was made before is on the list.
           Who is let in may put code there that the owner's ranks, which run, execute: that is what a group's root is.
        3. Beside that, a rank may have looked at a directory before its change and have put something into it after the
           listing; or it may have moved a file, from where it was still to be changed to where all was changed. So a
           pass follows upon each that changed something. What a rank looks at after the first pass is right already.
           What it looked at before, it has finished by the second, unless it stood still meanwhile.
        4. Where the root is no group's any more, what other members have made for all is put aside, since the owner's
           processes refuse such a directory; in one that others may read, all that these members could still write.
        5. Where more are to use the root, the mark comes last: nobody believes it before all is as it says. Killed
           before, the others are refused as ever, and the root's owner works on.
        """
        wanted, root = self._planned.wanted, self._planned.root
        if self._withdraws():
            self._forget_mark()
        if wanted.sharing == "group":
            make_parts(root, not wanted.acl, self._disk)
        last = self._passes(show)
        if wanted.sharing != "group":
            take_back(root, self._planned.uid, self._disk, wanted.sharing)
        if wanted.sharing == "private":
            self._forget_mark()
        elif mark_of(root) is None and not last.uncopied:
            self._write_mark()
        return Reshared(
            directories=self._directories,
            files=self._files,
            copied_files=self._copied,
            uncopied=last.uncopied,
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

    def _write_mark(self) -> None:
        """Put the mark into its place, whole, by no link that anybody may have put on the way."""
        root, wanted = self._planned.root, self._planned.wanted
        name = f"{STAGED}{os.getpid()}-{os.urandom(6).hex()}"
        with self._disk.directory(paths.ours(root, "tmp")) as staging:
            fd = os.open(name, _NEW, 0o600, dir_fd=staging)
            with open(fd, "wb") as file:
                file.write(mark_text(wanted.sharing))
                file.flush()
                os.fsync(fd)
                if wanted.gid is not None:
                    os.fchown(fd, -1, wanted.gid)
                os.fchmod(fd, wanted.mode(_MARK, os.fstat(fd)))

            def placed(here: int, last: str) -> None:
                os.rename(name, last, src_dir_fd=staging, dst_dir_fd=here)

            self._disk.act(paths.mark_path(root), placed)

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
        """How many files are to be copied whose keys are locked."""
        self.uncopied = 0
        """These, and what could not be copied."""
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
        if outside and may_copy(self._planned.before, self._wanted.sharing):
            copying = LinkedOutside(self.root, self._disk, self._wanted, self._planned.uid, outside)
            self.copied += copying.copy(self.fail)
            self.busy = copying.busy
            self.uncopied = copying.busy + copying.failed

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
        """As `walking.Walker.fail`; what is closed to this user is another's, and stays."""
        if error.errno == errno.EACCES:
            return
        if len(self.failures) < _MOST_FAILURES:
            self.failures[path] = error.strerror or str(error)

    def _change_linked(self) -> set[int]:
        """Change the files of which all names were found; return the inodes of the others."""
        outside = set()
        for linked in self._linked.unfit():
            try:
                if linked.is_outside or not self._changed_by_path(linked):
                    outside.add(linked.number)
            except OSError as error:
                self.fail(linked.path, error)
        return outside

    def _changed_by_path(self, linked: Linked) -> bool:
        """Change a file of which all names are in the root; return False where it has got others meanwhile."""

        def act(here: int, name: str) -> bool:
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if found.st_ino != linked.number:
                return True  # replaced meanwhile: the next pass sees what is there now
            seen = Seen(here, name, linked.path, found)
            done = change(seen, self._wanted, self._planned.uid, linked.names)
            self.files += done
            return done

        try:
            return self._disk.act(f"{self.root}/{linked.path}", act)
        except FileNotFoundError:
            return True
