"""Plan how to change with whom a root is shared, or to mend one whose modes do not fit; `reshare_act` does it.

What the root's user owns is changed; what belongs to others stays, and is named. A file that has a name outside the
root as well (a view in a device directory elsewhere, what was adopted from ``~/.triton/cache``, a backup of hard links)
is copied first, since its modes are those of each of its names. What is no cache stays.
"""

from __future__ import annotations

import os
import shlex
import stat

from gpucache.disk.door import DIRECTORY
from gpucache.disk.files import make_root
from gpucache.disk.refusal import refusal
from gpucache.disk.shared_modes import Wanted
from gpucache.disk.sharing import mark_of
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.disk.within import Straight
from gpucache.errors import SharingError
from gpucache.layout import paths
from gpucache.report.unfit import Others, look
from gpucache.upkeep.sharing_group import check_member, group_id, working_as
from gpucache.upkeep.sharing_trial import tried
from gpucache.upkeep.taken_back import taken
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing


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
    lets_in: bool = False
    """Whether the group of the root's directory may not use that directory yet: that of a copy may be any group."""
    taken: tuple[str, ...] = ()
    """The paths of what other members have made, and what cannot stay so: directories for all, with which the root's
    owner could not use the root, and in a root that others may read all that these members could still write. These
    come into the quarantine; records and settings are copied."""
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
        return self.changes_mark or bool(self.directories or self.files or self.taken)


def may_copy(before: Sharing, after: Sharing) -> bool:
    """Whether a file that is linked from outside may be copied to where others read the copy.

    Into a group's root another member may have linked any file of the owner's that this member can reach (where the
    kernel allows it: ``fs.protected_hardlinks=0``), and a copy would be the group's to read.
    """
    return before != "group" or after == "private"


def plan(
    root: str, sharing: Sharing, group: str | None = None, trust: Trust | None = None
) -> Resharing:
    """Look what changes where a root comes to be shared so, or is shared so and is to be mended. Changes nothing.

    ``group`` is the name or id of the group; without it, that of the root's directory. Where root asks for the root of
    another user, it is that user's directories and files that change, with no more rights than that user's. One thing
    is made for a moment, to see what the mount can do. ``trust`` is with which the way to the root is looked at.

    Raises:
        SharingError: it cannot be done: the group or its member, the owner of the root, or the mount forbids it.
        ProvisionError: nothing can be made in the root.
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
        inside = (trust or Trust()).in_root(real)
        vet(real, inside)
        _vet_inside(real, inside)
        acl = tried(real, sharing, gid)
        wanted = Wanted(sharing, gid, acl)
        unfit = look(real, wanted, uid)
        with Straight() as disk:
            others = () if sharing == "group" else taken(real, uid, disk, sharing)
    copied = may_copy(before, sharing)
    return Resharing(
        root=real,
        before=before,
        gid_before=found.st_gid,
        wanted=wanted,
        uid=uid,
        directories=unfit.directories,
        files=unfit.files + unfit.outside_files * copied,
        bytes=unfit.bytes + unfit.outside_bytes * copied,
        copied_files=unfit.outside_files * copied,
        copied_bytes=unfit.outside_bytes * copied,
        shared_links=unfit.outside_files * (not copied),
        cached_files=unfit.cached_files,
        others=unfit.others,
        lets_in=sharing == "group" and found.st_mode & stat.S_IRWXG != stat.S_IRWXG,
        taken=tuple(others),
        left=unfit.left,
    )


def _vet_inside(root: str, trust: Trust) -> None:
    """Refuse what would lead a change elsewhere, as root's: another user's directories above all others, and links."""
    outer = (f"{root}/gpucache", paths.ours(root))
    for path in paths.our_directories(root):
        if path in outer or os.path.islink(path):
            vet_child(path, trust)


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
    hint = (
        f"have uid {owner} say "
        f"`gpucache provision --root {shlex.quote(root)} --shared {sharing} --yes`"
    )
    return SharingError(root, "not-the-owner", fact, hint)
