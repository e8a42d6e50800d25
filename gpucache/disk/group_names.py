"""How people call groups and users, and whether the machine has registered a user as a member of a group.

Sessions have the groups that were registered when they began: who is added to a group has to log in again.
"""

from __future__ import annotations

from contextlib import suppress


def group_name(gid: int) -> str:
    """A group as a message names it: by its name and its id."""
    name = plain_name(gid)
    return f"gid {gid}" if name == str(gid) else f"{name} (gid {gid})"


def plain_name(gid: int) -> str:
    """A group as a command takes it: its name, or its id where the machine knows none."""
    with suppress(ImportError, KeyError):
        import grp

        return grp.getgrgid(gid).gr_name
    return str(gid)


def login_name(uid: int) -> str | None:
    """The name by which a user logs in; None where the machine knows none, as in many containers."""
    with suppress(ImportError, KeyError):
        import pwd

        return pwd.getpwuid(uid).pw_name
    return None


def is_registered(uid: int, gid: int) -> bool:
    """Whether a user is named as a member of a group, so that sessions which begin now are in the group."""
    with suppress(ImportError, KeyError):
        import grp

        return login_name(uid) in grp.getgrgid(gid).gr_mem
    return False
