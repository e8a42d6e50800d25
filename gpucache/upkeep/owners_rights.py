"""Give up root's rights for good, for those of the owner of a directory.

The file system then refuses all that the owner could not do himself, whatever lies in his directory.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass

from gpucache.disk.vetting import is_groups

FIRST_OF_PEOPLE = 1000
"""Below are system users (`login.defs(5)`: UID_MIN)."""
_NOBODY = 65534
"""As whom the kernel shows users whom this user namespace does not map (`user_namespaces(7)`)."""
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


@dataclass(frozen=True, slots=True)
class Rights:
    """A user's rights: one uid, one gid, and no other group."""

    uid: int
    gid: int


def is_of_system(uid: int) -> bool:
    """Whether a user is one of the system's, or nobody: nobody's caches are removed unless their place is named."""
    return uid < FIRST_OF_PEOPLE or uid == _NOBODY


def rights_of(found: os.stat_result) -> Rights:
    """The rights of the owner of a directory.

    Of his groups it is that of the directory where that is a group's (mode 2770), and he is a member, as far as the
    machine knows its users; else his first one. The directory's group by itself proves nothing: in a set-group-ID
    directory everybody makes directories of a group in which he is not.
    """
    try:
        own = pwd.getpwuid(found.st_uid)
    except KeyError:
        gid = found.st_gid if found.st_gid >= FIRST_OF_PEOPLE else _NOBODY
        return Rights(found.st_uid, gid)
    if is_groups(found.st_mode) and _is_member(own, found.st_gid):
        return Rights(found.st_uid, found.st_gid)
    return Rights(found.st_uid, own.pw_gid)


def _is_member(user: pwd.struct_passwd, gid: int) -> bool:
    if user.pw_gid == gid:
        return True
    try:
        return user.pw_name in grp.getgrgid(gid).gr_mem
    except KeyError:
        return False


def become(rights: Rights) -> None:
    """Take over these rights in this process, for good, and make sure that nothing is left of root's.

    Raises:
        OSError: the system does not allow it, or something was left.
    """
    os.setgroups([])
    os.setresgid(rights.gid, rights.gid, rights.gid)
    os.setresuid(rights.uid, rights.uid, rights.uid)
    users, groups = {*os.getresuid()}, {*os.getresgid(), *os.getgroups()}
    if users != {rights.uid} or groups != {rights.gid}:
        raise PermissionError(f"the rights of uid {rights.uid} could not be taken over")
    if rights.uid and _capabilities():
        raise PermissionError("capabilities of root's were left (securebits are set)")


def _capabilities() -> int:
    """All capabilities of this process, in any set but that which bounds them."""
    found = 0
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in _CAPABILITIES:
                found |= int(value, 16)
    return found


def swappable(way: list[tuple[str, os.stat_result]], found: os.stat_result) -> str | None:
    """Why somebody else than root and the owner could put another directory in the place of one; None if nobody can.

    ``way`` has each directory above with its path, ``found`` is the directory itself.
    """
    for path, above in way:
        if above.st_uid not in (0, found.st_uid):
            return f"{path} belongs to uid {above.st_uid}, who could put another directory there"
        writable = above.st_mode & stat.S_IWOTH
        if above.st_gid != found.st_gid or not is_groups(found.st_mode):
            writable |= above.st_mode & stat.S_IWGRP and above.st_gid != 0
        if writable and not above.st_mode & stat.S_ISVTX:
            mode = stat.S_IMODE(above.st_mode)
            return f"others may write {path} (mode {mode:04o}), and put another directory there"
    return None
