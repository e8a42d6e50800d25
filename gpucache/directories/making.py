"""`Making`: makes the directories of a root with the modes of how the root is shared, whatever the umask."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from gpucache.disk.access_acl import drop_list
from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import make_directory
from gpucache.disk.refusal import quoted, refusal
from gpucache.disk.sharing import MODES, PRIVATE, READ, READABLE, Modes
from gpucache.disk.vetting import is_groups
from gpucache.errors import ProvisionError
from gpucache.layout import inductor, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing


class Making:
    """Makes what provisioning makes of directories in one root. Beside any process that does the same."""

    def __init__(self, root: str, sharing: Sharing) -> None:
        self.root = root
        self.sharing = sharing
        self.modes = MODES[sharing]
        self._gid = -1
        """The group of the root's directory."""

    def root_directory(self) -> None:
        """Give the root itself, which is there, the mode of how it is shared; a private one keeps what it has.

        Raises:
            ProvisionError: it belongs to another user, and has not that mode.
        """
        if self.sharing == "private":
            return
        found = os.stat(self.root)
        self._gid = found.st_gid
        if not (self._has_mode(found) or self._changed(self.root)):
            mode = f"{self.modes.directory:o}"
            raise ProvisionError(
                self.root,
                errno.EPERM,
                f"have uid {found.st_uid} say `chmod {mode} {quoted(self.root)}`",
                "share",
            )
        if self.sharing == "group":
            self._set_default_acl(self.root)

    def directory(self, path: str) -> bool:
        """Make a directory in the root, or give this user's own the mode that it should have; return if it was made.

        Raises:
            ProvisionError: the operating system refused.
        """
        made = make_directory(path)
        if self.sharing != "private":
            with suppress(PermissionError):  # another member's, who gives it the mode
                self._changed(path)
        return made

    def locks_of_others(self) -> None:
        """Make, in a *read* root, the directories in which torch has its locks, which torch would make by the umask.

        Whoever can read a lock's file can hold the lock, and so keep the owner's compiles waiting.

        Raises:
            ProvisionError: the operating system refused.
        """
        if self.sharing == "read":
            for path in inductor.private_directories(self.root):
                self.directory(path)

    def _modes_of(self, path: str) -> Modes:
        """The modes of a directory: in a *read* root, others see only what is published."""
        if self.modes == READ and path in inductor.private_directories(self.root):
            return PRIVATE
        part = path.partition(f"{paths.ours(self.root)}/")[2]
        if self.modes == READ and part and part not in READABLE:
            return PRIVATE
        return self.modes

    def _has_mode(self, found: os.stat_result) -> bool:
        if self.sharing == "group":
            return is_groups(found.st_mode)
        return stat.S_IMODE(found.st_mode) & 0o777 == self.modes.directory

    def _changed(self, path: str) -> bool:
        """Give a directory of this user's the root's group and its mode; False where it is another user's."""
        try:
            fd = os.open(os.path.realpath(path), DIRECTORY)
        except OSError as error:
            raise refusal(path, error, "share") from error
        try:
            found = os.fstat(fd)
            if os.geteuid() not in (0, found.st_uid):
                return False
            if self.sharing == "group" and found.st_gid != self._gid:
                os.fchown(fd, -1, self._gid)
            mode = self._modes_of(path).directory
            if self.sharing == "group":
                drop_list(fd)  # one of the directory above may let others write what is the group's
                found = os.fstat(fd)
            if stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(fd, mode)
            is_shared = bool(os.fstat(fd).st_mode & stat.S_ISGID)
            if self.sharing == "group" and not is_shared:
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
        except OSError as error:
            raise refusal(path, error, "share") from error
        finally:
            os.close(fd)
        if self.sharing == "group" and not is_shared:
            raise self._no_member(path)
        return True

    def _no_member(self, path: str) -> ProvisionError:
        """The error of a user who is no member: the kernel takes his set-group-ID bit away without a word."""
        fact = f"uid {os.geteuid()} is not in the group {self._gid}"
        hint = (
            f"{fact}: `chgrp GROUP {quoted(path)}` to one of his groups, or have a member do this"
        )
        return ProvisionError(path, errno.EPERM, hint, "share")

    def _set_default_acl(self, path: str) -> None:
        """Have other programs' files come out for the group's members; where the mount cannot, each has own ones."""
        from gpucache.disk.default_acl import has_default_acl, set_default_acl

        if has_default_acl(path):
            return
        fd = os.open(os.path.realpath(path), DIRECTORY)
        try:
            with suppress(OSError):  # another member's, who sets it
                set_default_acl(fd, self.modes.directory & 0o777)
        finally:
            os.close(fd)
