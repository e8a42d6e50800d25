"""Refuse unsafe cache directories: those of users who are not trusted, and those that everybody may write or replace.

A cache is code: Triton and torch ``dlopen``, ``exec`` and unpickle what they find in a cache directory. `vet` lists
what is refused.
"""

from __future__ import annotations

import errno
import os
import stat

from gpucache.environment import ROOT, TRUST_GROUPS, TRUST_UIDS, TRUST_WORLD_WRITABLE
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


_MOST_LINKS = 40  # Linux's own limit (path_resolution(7))


class Trust(Value):
    """Which users, beside himself and root, the user of this process trusts with what is executed."""

    uids: frozenset[int] = frozenset()
    world_writable: bool = False
    """Whether a directory that everybody may write is accepted: a Kubernetes ``emptyDir`` is one."""
    groups: frozenset[int] = frozenset()
    """The groups of whose roots the mark is believed, whichever member made it."""
    shared_gid: int | None = None
    """The group whose members this user trusts in one root: the root's, which is marked so (`in_root`)."""

    @classmethod
    def parse(cls, environ: Mapping[str, str]) -> Trust:
        """Read `GPUCACHE_TRUST_UIDS` (``1000,1001``), `GPUCACHE_TRUST_WORLD_WRITABLE` and `GPUCACHE_TRUST_GROUPS`.

        Raises:
            ConfigurationError: a value makes no sense.
        """
        return cls(
            TRUST_UIDS.read(environ),
            TRUST_WORLD_WRITABLE.read(environ),
            TRUST_GROUPS.read(environ),
        )

    @classmethod
    def for_launch(cls, environ: Mapping[str, str]) -> Trust:
        """Read the same variables for a kernel launch, which must not fail.

        A value that makes no sense is told in the log, and extends the trust to nobody.
        """
        return cls(
            TRUST_UIDS.read_or_default(environ),
            TRUST_WORLD_WRITABLE.read_or_default(environ),
            TRUST_GROUPS.read_or_default(environ),
        )

    def covers(self, uid: int) -> bool:
        """Whether what the user with this uid has made may be executed."""
        always_trusted = (os.geteuid(), 0)
        return uid in always_trusted or uid in self.uids

    def accepts(self, found: os.stat_result) -> bool:
        """Whether what has this owner, group and mode may be executed: as `covers`, or as a member's in a shared root.

        Of what the root's group owns nothing may be open to others, who could have put something there.
        """
        if self.covers(found.st_uid):
            return True
        return found.st_gid == self.shared_gid and not found.st_mode & stat.S_IRWXO

    def in_root(self, root: str) -> Trust:
        """The trust with which what lies below a root is looked at: in a *group* root its members are trusted.

        A root must not declare whom to trust, else a stranger could make one at the path of the user's. So the mark of
        a root is believed only if the root's directory and the mark belong to somebody who is trusted (`covers`), or to
        a group that the user himself named (`groups`), and nothing of theirs is open to others.

        Who is no member can make something of a group's in a set-group-ID directory that everybody may write, and move
        it elsewhere. So a root of somebody who is not trusted by name must not lie in such a directory, and its owner
        must be a member, as far as the machine knows its users. Limit: where it does not, as in a container, such a
        root that was moved is believed.
        """
        try:
            found = os.stat(root)
        except OSError:
            return self  # `vet` tells
        if not is_groups(found.st_mode) or not self._believes(found.st_uid, found.st_gid):
            return self
        from gpucache.disk.sharing import mark_of
        from gpucache.disk.unmapped import may_be_unmapped

        if may_be_unmapped(found.st_gid, "gid"):
            return self  # it stands for any number of groups
        mark = mark_of(root)
        if mark is None or mark.sharing != "group" or mark.mode & stat.S_IRWXO:
            return self
        if mark.gid != found.st_gid or not self._believes(mark.uid, mark.gid):
            return self
        strangers = [uid for uid in (found.st_uid, mark.uid) if not self.covers(uid)]
        if strangers and _is_given_away(root, found.st_gid):
            return self
        if any(_is_known_outside(uid, found.st_gid) for uid in strangers):
            return self
        return Trust(self.uids, self.world_writable, self.groups, found.st_gid)

    def _believes(self, uid: int, gid: int) -> bool:
        return self.covers(uid) or gid in self.groups


def is_groups(mode: int) -> bool:
    """Whether a directory's mode gives all to its group, nothing to others, and the group to what is made in it."""
    return mode & 0o2077 == 0o2070


def _is_given_away(root: str, gid: int) -> bool:
    """Whether everybody may make directories of this group where a root is, in which they get the group."""
    above = os.stat(os.path.dirname(os.path.realpath(root)))
    return above.st_gid == gid and bool(above.st_mode & stat.S_IWOTH)


def _is_known_outside(uid: int, gid: int) -> bool:
    """Whether the machine knows a user, and a group of which that user is no member."""
    try:
        import grp
        import pwd

        grp.getgrgid(gid)
        user = pwd.getpwuid(uid)
    except (KeyError, ImportError):
        return False
    return gid not in os.getgrouplist(user.pw_name, user.pw_gid)


def vet(path: str, trust: Trust) -> bool:
    """Check a directory and the way to it; return whether the directory exists.

    Refused: a directory owned by anyone but the effective user, root or a trusted uid; one that everybody may write;
    an ancestor that everybody may write without the sticky bit; a link on the way that belongs to anyone but the
    effective user or root. Of a path that does not exist, what exists is checked.

    Refused too: one that a POSIX access-control list lets somebody write who is not trusted, which no mode shows.

    Limits: group permissions, the owners of ancestors and the lists of these are trusted, and so are lists of other
    kinds (NFSv4); and what changes after the check is not seen.

    Raises:
        UnsafeDirectoryError: something is refused; the error has the fact and the way out.
        ProvisionError: the path leads through something that is not a directory, or in circles, or cannot be seen.
    """
    if not hasattr(os, "geteuid"):
        return os.path.isdir(path)
    end = vet_way(path, trust)
    if end is None:
        return False
    _vet_directory(*end, trust)
    return True


def vet_way(path: str, trust: Trust) -> tuple[str, os.stat_result] | None:
    """Check the way to something, as `vet` does, and not what is at its end.

    Returns the path to which all links on the way lead, and its `os.lstat`; None where nothing is there.

    Raises:
        UnsafeDirectoryError, ProvisionError: as `vet`.
    """
    here, here_stat = "/", os.lstat("/")
    pending = path.split("/")[::-1]
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        joined = os.path.join(here, name)
        step = os.path.normpath(joined)
        if name != "..":
            _vet_ancestor(here, here_stat, trust)
        try:
            step_stat = os.lstat(step)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refusal(step, error) from error
        if stat.S_ISLNK(step_stat.st_mode):
            links += 1
            _vet_link(step, step_stat, links)
            target = _target_of(step)
            pending += target.split("/")[::-1]
            if target.startswith("/"):
                here, here_stat = "/", os.lstat("/")
        else:
            here, here_stat = step, step_stat
    return here, here_stat


def _refusal(path: str, error: OSError) -> ProvisionError:
    """The error of what the operating system lets nobody look at."""
    from gpucache.disk.refusal import refusal  # a start in which all is well needs it not

    return refusal(path, error, "look at")


def _target_of(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError as error:
        raise _refusal(link, error) from error


def vet_child(path: str, trust: Trust) -> bool:
    """Check a directory inside one that has been vetted; return whether it exists. Costs one system call.

    Raises:
        UnsafeDirectoryError: as `vet`.
        ProvisionError: as `vet`.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refusal(path, error) from error
    if stat.S_ISLNK(found.st_mode):
        return vet(path, trust)
    if hasattr(os, "geteuid"):
        _vet_directory(path, found, trust)
    return True


def vet_file(path: str, trust: Trust) -> None:
    """Check a file that is about to be believed, in a directory that has been vetted. A missing file is fine.

    Raises:
        UnsafeDirectoryError: the file is another user's, or everybody may write it, or it is no plain file.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not hasattr(os, "geteuid"):
        return
    vet_found_file(path, found, trust)


def vet_found_directory(path: str, found: os.stat_result, trust: Trust) -> None:
    """Check a directory by its `os.stat`, which the caller has of an open descriptor, as `vet` does.

    Raises:
        UnsafeDirectoryError: as `vet`.
        ProvisionError: it is no directory.
    """
    _vet_directory(path, found, trust)


def vet_found_ancestor(path: str, found: os.stat_result, trust: Trust) -> None:
    """Check, as `vet_found_directory`, a directory that is on the way to a root."""
    _vet_ancestor(path, found, trust)


def vet_found_file(path: str, found: os.stat_result, trust: Trust) -> None:
    """Check, as `vet_found_directory`, a file that is about to be believed.

    Raises:
        UnsafeDirectoryError: as `vet_file`.
    """
    fact = ""
    if not stat.S_ISREG(found.st_mode):
        fact = "is not a plain file"
    elif not trust.accepts(found) or _is_nobodys(path, found):
        fact = _foreign(found)
    elif _is_open_to_all(found, trust):
        fact = f"everybody may write it (mode {_mode(found)})"
    if fact:
        from gpucache.disk.ways_out import removing

        hint = f"{removing(path, found)}, and run `gpucache provision`"
        raise UnsafeDirectoryError(path, fact, hint)
    _refuse_named_writers(path, found, trust)


def _vet_directory(path: str, found: os.stat_result, trust: Trust) -> None:
    _refuse_no_directory(path, found)
    if not trust.accepts(found) or _is_nobodys(path, found):
        from gpucache.disk.ways_out import of_anothers

        hint = of_anothers(path, found, trust.uids, trust.groups)
        raise UnsafeDirectoryError(path, f"{_foreign(found)}, and a cache is executed", hint)
    if _is_open_to_all(found, trust):
        from gpucache.disk.ways_out import closing

        fact = f"everybody may write it (mode {_mode(found)}), and a cache is executed"
        raise UnsafeDirectoryError(path, fact, closing(path, found))
    _refuse_named_writers(path, found, trust)


_NOBODY = 65534


def _is_nobodys(path: str, found: os.stat_result) -> bool:
    """Whether something shows this user as its owner only because he has the number of all who are not mapped."""
    if found.st_uid != os.geteuid() or found.st_uid != _NOBODY:
        return False
    from gpucache.disk.unmapped import is_really_own, may_be_unmapped

    return may_be_unmapped(found.st_uid) and not is_really_own(path)


def _refuse_named_writers(path: str, found: os.stat_result, trust: Trust) -> None:
    """Refuse what an access-control list lets somebody write whom the mode does not show, and who is not trusted.

    One call where the group may write, else none.
    """
    if not found.st_mode & stat.S_IWGRP:
        return
    from gpucache.disk import access_acl

    try:
        named = access_acl.named_writers(path, found.st_mode)
    except OSError as error:
        raise _refusal(path, error) from error
    uids = [uid for uid in named.uids if not trust.covers(uid)]
    gids = [gid for gid in named.gids if gid not in (*trust.groups, found.st_gid)]
    if uids or gids:
        from gpucache.disk.ways_out import named_writers

        fact, hint = named_writers(path, found, uids, gids, (trust.uids, trust.groups))
        raise UnsafeDirectoryError(path, fact, hint)


def _foreign(found: os.stat_result) -> str:
    """Whose something is that is not this user's, and its mode."""
    from gpucache.disk.ways_out import user

    return f"belongs to {user(found.st_uid)}, not to uid {os.geteuid()} (mode {_mode(found)})"


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _vet_ancestor(path: str, found: os.stat_result, trust: Trust) -> None:
    _refuse_no_directory(path, found)
    sticky = bool(found.st_mode & stat.S_ISVTX)
    if _is_open_to_all(found, trust) and not sticky:
        from gpucache.disk.ways_out import ALONE, chmod

        fact = f"everybody may write this ancestor (mode {_mode(found)}, not sticky) "
        fact += "and so replace the cache, which is executed"
        raise UnsafeDirectoryError(path, fact, f"{chmod(path, found, '+t')}, or {ALONE}")


def _refuse_no_directory(path: str, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        from gpucache.disk.ways_out import moving_away

        hint = "choose another root"
        if stat.S_ISREG(found.st_mode):  # a device or a FIFO is surely where it should be
            hint += f", or move that away: {moving_away(path, found)}"
        raise ProvisionError(path, errno.ENOTDIR, hint, "look at")


def _is_open_to_all(found: os.stat_result, trust: Trust) -> bool:
    """Whether everybody may write something, and the user has not said that he accepts that."""
    writable = bool(found.st_mode & stat.S_IWOTH)
    return writable and not trust.world_writable


def _vet_link(path: str, found: os.stat_result, links: int) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        from gpucache.disk.ways_out import removing, user

        raise UnsafeDirectoryError(
            path,
            f"is a symbolic link of {user(found.st_uid)}, who can point it anywhere",
            f"{removing(path, found)}, or set {ROOT} to a directory of your own without it on the way",
        )
    if links > _MOST_LINKS:
        raise ProvisionError(path, errno.ELOOP, tried="look at")
