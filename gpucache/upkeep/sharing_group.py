"""Which group a root is to be shared with, whether its user is a member, and root's work as that user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from gpucache.disk.group_names import group_name, is_registered, login_name, plain_name
from gpucache.errors import SharingError

_MOST_NAMED = 8
_NO_ID = 2**32 - 1
"""What tells `chown(2)` to leave the group as it is."""
_IMPORTED_LATE = (
    *("filelock", "hashlib", "json", "logging", "shlex", "shutil", "tempfile"),
    *("gpucache.disk.capabilities", "gpucache.disk.lock_token", "gpucache.disk.sharing"),
    *("gpucache.disk.within", "gpucache.once", "gpucache.store.holder_life"),
)
"""What is imported only where it is needed, by what is done as another user."""


def group_id(root: str, name: str) -> int:
    """The id of a group that was named, or numbered.

    Raises:
        SharingError: this machine knows no such group.
    """
    import grp

    if name.isascii() and name.isdigit():
        if len(name) <= len(str(_NO_ID)) and int(name) < _NO_ID:
            return int(name)
        hint = f"a group's number is less than {_NO_ID}; `getent group` lists those there are"
        raise SharingError(root, "no-such-group", f"there is no group {name[:20]}", hint)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError, OSError):
        hint = "`getent group` lists those there are"
        if re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", name):
            hint += f"; `sudo groupadd {name}` makes it"
        raise SharingError(root, "no-such-group", f"there is no group {name!r}", hint) from None


def is_of_one_user(uid: int, gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, and that has nobody else in it."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and user.pw_name == group.gr_name and not group.gr_mem


def check_member(root: str, uid: int, gid: int) -> None:
    """Refuse a group of which a user is no member: the kernel would not let that user give anything to the group.

    Raises:
        SharingError: the user is no member, or only of sessions that begin from now on.
    """
    groups = groups_of(uid, gid)
    if uid == 0 or gid in groups:
        return
    fact = f"uid {uid} is not in group {group_name(gid)}"
    if is_registered(uid, gid):
        fact += " in this session, which began before that user was added to the group"
        hint = f"log in again, or `newgrp {plain_name(gid)}`, and then try again"
    else:
        user = login_name(uid) or uid
        hint = f"`sudo usermod -aG {plain_name(gid)} {user}` and log in again, or --group: one of "
        names = [plain_name(known) for known in sorted(groups)]
        hint += ", ".join(names[:_MOST_NAMED])
    raise SharingError(root, "not-a-member", fact, hint)


def groups_of(uid: int, gid: int) -> set[int]:
    """The groups of a user: of this process's as the kernel has them, of another's as they are registered.

    A user whom this machine does not know has whatever group root's work for him is about (``gid``).
    """
    if uid == os.geteuid():
        return {os.getegid(), *os.getgroups()}
    import pwd

    try:
        known = pwd.getpwuid(uid)
    except KeyError:
        return {gid}
    return set(os.getgrouplist(known.pw_name, known.pw_gid))


@contextmanager
def working_as(uid: int, gid: int) -> Iterator[None]:
    """Do what is done in the ``with`` block as a user, with the groups of that user, where this process is root.

    So the kernel refuses whatever that user might not do by himself, wherever a path of his leads. Nothing of his is
    executed meanwhile, which could take root's rights back. The whole process is that user: one thread at a time.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    for name in _IMPORTED_LATE:
        import_module(name)  # from where that user may not be allowed to read
    groups = sorted(groups_of(uid, gid))
    before = os.getgroups(), os.getegid()
    try:
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])
