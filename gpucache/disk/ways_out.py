"""The way out of a refusal of what another user owns: what this user can set, or the one command its owner has to give.

Each way is offered only where it leads on: a variable that trusts an owner is none where his directories are closed to
this user, and a shared root is none for somebody outside its group.
"""

from __future__ import annotations

import os
import stat

from gpucache.disk.refusal import may, quoted
from gpucache.disk.unmapped import may_be_unmapped
from gpucache.disk.vetting import is_groups
from gpucache.environment import FALLBACK, ROOT, TRUST_GROUPS, TRUST_UIDS, TRUST_WORLD_WRITABLE
from gpucache.layout import paths

OWN = f"set {ROOT} to a directory of your own"
ALONE = f"set {TRUST_WORLD_WRITABLE}=1 where only your own processes reach it (an emptyDir)"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def of_anothers(
    path: str, found: os.stat_result, uids: Iterable[int] = (), groups: Iterable[int] = ()
) -> str:
    """What to do about a directory of another user at a path, which may be a root or lie in one.

    ``found`` is its `os.stat`, ``uids`` and ``groups`` are whom this user trusts already, which must not be lost.
    """
    if may_be_unmapped(found.st_uid):  # to trust it would be to trust any number of users
        return OWN
    root = root_above(path)
    trusting = _trusting(TRUST_UIDS.name, uids, found.st_uid)
    try:
        of_root = os.stat(root)
    except OSError:
        return OWN
    if root != path and of_root.st_uid != found.st_uid:
        return _past_intruder(path, of_root, found, uids, groups)
    if os.geteuid() == 0:
        return f"{OWN}, or {trusting} if you trust that user"
    if _is_only_members(of_root):
        return _joining(of_root.st_gid, groups)
    if _is_new(root) and may(root, _ALL):
        if of_root.st_mode & stat.S_IWOTH:
            trusting += f" with {TRUST_WORLD_WRITABLE}=1"
        return f"{OWN}, or {trusting} if you trust that user"
    if _is_new(root):
        return OWN
    if _is_member(of_root.st_gid):
        is_groups_own = _is_marked(root) and is_groups(of_root.st_mode)
        if is_groups_own and of_root.st_gid in groups:
            # It is not believed, since nothing shows that its owner is a member.
            return f"{OWN}, or {trusting} if you trust that user"
        return f"{OWN}, or {_sharing(root, of_root, groups)}"
    if may(paths.ours(root, "store"), os.R_OK | os.X_OK):
        return f"{OWN} and {FALLBACK}={quoted(root)}, with {trusting} if you trust that user"
    return OWN


def _past_intruder(
    path: str,
    of_root: os.stat_result,
    found: os.stat_result,
    uids: Iterable[int],
    groups: Iterable[int],
) -> str:
    """What to do about a directory in a root that belongs to somebody else than the root itself."""
    root = root_above(path)
    if _is_marked(root) and found.st_gid == of_root.st_gid and _is_member(of_root.st_gid):
        if of_root.st_gid not in groups:
            naming = _trusting(TRUST_GROUPS.name, groups, of_root.st_gid)
            return f"{OWN}, or {naming} if you trust every member of that group"
        command = f"gpucache provision --root {quoted(root)} --shared group --yes"
        return f"{OWN}, or have {user(found.st_uid)} say `{command}`"
    aside = f"`{_aside(path, (of_root.st_uid, *uids))}`"
    if os.geteuid() not in (0, of_root.st_uid):
        aside = f"have {user(of_root.st_uid)} say {aside}"
    if os.geteuid() == 0:
        return (
            f"{aside}, or {_trusting(TRUST_UIDS.name, uids, found.st_uid)} if you trust that user"
        )
    return f"{aside}, or {OWN}"


def _aside(intruder: str, owners: Sequence[int]) -> str:
    """The command that moves away what others have put into a root; the owner of the root may.

    ``intruder`` is in the way; what is like it at the top of the root would be found next.
    """
    root = root_above(intruder)
    top = [path for path in (paths.triton_directory(root), f"{root}/gpucache") if path != intruder]
    moves = []
    for path in (intruder, *top):
        if os.path.lexists(path):
            uid = os.lstat(path).st_uid
            is_fine = uid in owners or (uid == 0 and may(path, _ALL))
            if not is_fine:
                moves.append(f"mv {quoted(path)} {quoted(f'{path}.{uid}')}")
    return " && ".join(moves)


def closing(path: str, found: os.stat_result) -> str:
    """What to do about a directory of somebody who is trusted that everybody may write.

    Closed to others it would be closed to this user too, where he is neither its owner nor in its group.
    """
    if found.st_mode & stat.S_ISVTX:  # as /tmp, which others need as it is
        return f"set {ROOT} to a directory of your own, which may be in there, or {ALONE}"
    is_own = os.geteuid() in (0, found.st_uid)
    inside = _foreign_inside(path)
    if inside is not None and not is_own:
        return of_anothers(inside, os.stat(inside))
    if is_own or (_is_member(found.st_gid) and found.st_mode & stat.S_IWGRP):
        return f"{chmod(path, found, 'o-w')}, or {ALONE}"
    return f"{ALONE}, else {OWN}"


def _foreign_inside(root: str) -> str | None:
    """The first directory of gpucache's in a root that another user has closed to this user."""
    for path in paths.our_directories(root):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            continue
        except OSError:
            return os.path.dirname(path)
        if found.st_uid != os.geteuid() and not may(path, _ALL):
            return path
    return None


def removing(path: str, found: os.stat_result) -> str:
    """The command that removes a file, a link or a directory, and who may give it."""
    is_directory = stat.S_ISDIR(found.st_mode)
    return _by_whom(f"`rm {'-r ' if is_directory else ''}{quoted(path)}`", path, found)


def moving_away(path: str, found: os.stat_result) -> str:
    """The command that moves a file away that somebody may need, and who may give it."""
    return _by_whom(f"`mv -n {quoted(path)} {quoted(f'{path}.old')}`", path, found)


def _by_whom(command: str, path: str, found: os.stat_result) -> str:
    """A command that takes the name of something away, and who may give it."""
    parent = os.path.dirname(path) or "/"
    try:
        above = os.stat(parent)
    except OSError:
        return command
    if not may(parent, os.W_OK | os.X_OK):
        return f"have {user(above.st_uid)} say {command}"
    is_kept = bool(above.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, above.st_uid)
    if is_kept and found.st_uid != os.geteuid():
        return f"have {user(found.st_uid)} say {command}"
    return command


def named_writers(
    path: str,
    found: os.stat_result,
    uids: Sequence[int],
    gids: Sequence[int],
    trusted: Sequence[Iterable[int]],
) -> tuple[str, str]:
    """The fact that an access-control list lets somebody write a directory or file, and what to do about that.

    ``uids`` and ``gids`` are the writers who are not trusted, ``trusted`` the users and the groups who are.
    """
    who = [*map(user, uids), *(f"the members of group {gid}" for gid in gids)]
    fact = f"{' and '.join(who)} may write it by an access-control list (mode {shown_mode(found)})"
    settings = []
    if uids:
        settings.append(_trusting(TRUST_UIDS.name, trusted[0], *uids))
    if gids:
        settings.append(_trusting(TRUST_GROUPS.name, trusted[1], *gids))
    trusting = f"{' '.join(settings)} if you trust them"
    if os.geteuid() not in (0, found.st_uid):
        return f"{fact}, and a cache is executed", f"{OWN}, or {trusting}"
    command = f"`chmod g-w {quoted(path)}`"
    root = root_above(path)
    if os.path.lexists(paths.mark_path(root)):  # whose members would be shut out
        command = f"`gpucache provision --root {quoted(root)} --shared group --yes`"
    return f"{fact}, and a cache is executed", f"{command}, or {trusting}"


def past_anothers(path: str, directory: str, found: os.stat_result) -> str:
    """What to do about a directory or file of another user that is in the way to a path, and is closed to this user.

    ``found`` is the `os.stat` of what is in the way.
    """
    if not stat.S_ISDIR(found.st_mode):
        return chmod(directory, found, "a+r")
    root = root_above(path)
    if directory == root and _is_only_members(found):
        return _joining(found.st_gid)
    is_below = f"{directory}/".startswith(f"{root}/")
    if root == path or not is_below:
        return OWN  # nothing tells that it is a cache's
    return of_anothers(directory, found)


def of_fallback(root: str, uids: Iterable[int]) -> str:
    """What makes a root of another user one from which this user copies; empty where nothing is known that does.

    ``uids`` are whom this user trusts already.
    """
    try:
        found = os.stat(root)
    except OSError:
        return ""
    is_shared_place = found.st_mode & stat.S_IWOTH and found.st_mode & stat.S_ISVTX  # as /tmp is
    if may_be_unmapped(found.st_uid) or not stat.S_ISDIR(found.st_mode) or is_shared_place:
        return ""
    ways = []
    if found.st_mode & stat.S_IWOTH:
        ways.append(chmod(root, found, "o-w"))
    elif not _is_readable(root):
        command = f"gpucache provision --root {quoted(root)} --shared read --yes"
        ways.append(f"have {user(found.st_uid)} say `{command}`")
    if found.st_uid not in (os.geteuid(), 0, *uids):
        ways.append(f"set {_trusting(TRUST_UIDS.name, uids, found.st_uid)} if you trust that user")
    return ", and ".join(ways)


def _is_readable(root: str) -> bool:
    """Whether this user may read a root's store, if there is one."""
    if not may(root, os.R_OK | os.X_OK):
        return False
    store = paths.ours(root, "store")
    try:
        os.stat(store)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return may(store, os.R_OK | os.X_OK)


_ALL = os.R_OK | os.W_OK | os.X_OK


def root_above(path: str) -> str:
    """The root in which a path is, by its name; the path itself where that tells of none.

    >>> root_above("/cache/gpucache/v1/locks"), root_above("/cache/triton/0"), root_above("/cache")
    ('/cache', '/cache', '/cache')
    """
    above, _, name = path.rpartition("/")
    if name in ("gpucache", "triton"):
        return above or "/"
    for part in ("/gpucache/v1", "/triton/"):
        root, found, _ = f"{path}/".rpartition(part)
        if found:
            return root or "/"
    return path


def _is_new(root: str) -> bool:
    """Whether nothing of gpucache's is in a root yet, so that this user would be the first."""
    return not any(map(os.path.lexists, paths.our_directories(root)))


def _is_marked(root: str) -> bool:
    """Whether something in a root says that the root is shared, whosever word that is."""
    return os.path.lexists(paths.mark_path(root))


def _is_member(gid: int) -> bool:
    return gid == os.getegid() or gid in os.getgroups()


def _is_only_members(of_root: os.stat_result) -> bool:
    """Whether a root is its group's, as its mode says, and this process is not in that group."""
    return is_groups(of_root.st_mode) and not _is_member(of_root.st_gid)


def _joining(gid: int, groups: Iterable[int] = ()) -> str:
    """What lets this user into a root of which only the members of a group have something."""
    from gpucache.disk.group_names import group_name, is_registered, login_name, plain_name

    naming = "" if gid in groups else f", and set {_trusting(TRUST_GROUPS.name, groups, gid)}"
    uid, name = os.geteuid(), plain_name(gid)
    if is_registered(uid, gid):
        session = f"this session began before this user was added to group {name}"
        return f"log in again, or `newgrp {name}` for this shell ({session}){naming}"
    if name == str(gid):
        way = f"have gid {gid} among the container's groups (supplementalGroups, --group-add)"
    else:
        way = f"`sudo usermod -aG {name} {login_name(uid) or uid}` and log in again"
    return f"{OWN}; it is for members of {group_name(gid)}: to be one, {way}{naming}"


def _sharing(root: str, of_root: os.stat_result, groups: Iterable[int]) -> str:
    """What makes a root one of its group, of which this user is a member, or lets this user believe that it is."""
    naming = _trusting(TRUST_GROUPS.name, groups, of_root.st_gid)
    if _is_marked(root) and is_groups(of_root.st_mode) and may(root, _ALL):
        return f"{naming} if you trust every member of that group"
    command = f"gpucache provision --root {quoted(root)} --shared group --yes"
    if of_root.st_mode & stat.S_IWOTH:
        command = f"chmod 2770 {quoted(root)} && {command}"
    having = f"have {user(of_root.st_uid)} say `{command}`"
    return having if of_root.st_uid == 0 else f"{having}, and set {naming}"


def _trusting(name: str, known: Iterable[int], *more: int) -> str:
    """A setting that trusts some more, and whom it trusts already."""
    return f"{name}={','.join(map(str, sorted({*known, *more})))}"


def chmod(path: str, found: os.stat_result, change: str) -> str:
    """The command that changes a mode, and who may give it."""
    command = f"`chmod {change} {quoted(path)}`"
    if os.geteuid() in (0, found.st_uid):
        return command
    return f"have {user(found.st_uid)} say {command}"


def shown_mode(found: os.stat_result) -> str:
    """A mode as `chmod` takes it: ``0755``, ``2770``."""
    return f"{stat.S_IMODE(found.st_mode):04o}"


def user(uid: int) -> str:
    """How a refusal names the owner of something."""
    if may_be_unmapped(uid):
        return f"a user whom this container does not map (shown as uid {uid})"
    return f"uid {uid}"
