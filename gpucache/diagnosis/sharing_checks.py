"""What `doctor` asks of a root that is shared: whether all who are to use the root can, and no torch fails there."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator

from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.disk.default_acl import may_have_default_acl
from gpucache.disk.sharing import mark_of, sharing_of
from gpucache.disk.vetting import Trust, is_groups
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.report.unfit import CODES, findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.sharing import Sharing

_MOST = 20_000
"""So many directories and files are looked at: a second's worth."""


@tells(CODES)
def modes(case: Case) -> Iterator[Finding]:
    """Find what has other modes, another group or no default ACL, where the root is shared."""
    root = os.path.realpath(case.root)
    sharing = declared(root, Trust.parse(case.environ))
    if case.unsafe or sharing == "private":
        return
    yield from findings(root, sharing, _MOST)


def declared(root: str, trust: Trust) -> Sharing:
    """With whom a root is to be shared, by the word of somebody who is trusted, whatever its directory's mode is now.

    `cp -a` and `chmod` take the set-group-ID bit from a root, and then nobody believes the mark (`sharing_of`).
    """
    mark = mark_of(root)
    if mark is not None and trust.covers(mark.uid) and trust.covers(os.stat(root).st_uid):
        return mark.sharing
    return sharing_of(root, trust)


@tells(
    {
        "half-shared": "the root has the modes of a group's root, and no mark: a change was not finished"
    }
)
def unfinished(case: Case) -> Iterator[Finding]:
    """Find a root of this user's on the way to or from a group: nobody else believes the root, yet may write there."""
    if not is_half_shared(case.root):
        return
    found = os.stat(case.root)
    mode = stat.S_IMODE(found.st_mode)
    fact = f"members of group {found.st_gid} may write there (mode {mode:04o}), and the root has no mark of a group's"
    commands = [
        f"`gpucache provision --shared {sharing} --root {shlex.quote(case.root)}`"
        for sharing in ("group", "private")
    ]
    fix = f"run {commands[0]} if they are to use the root, else {commands[1]}"
    yield Finding("half-shared", "warning", case.root, fact, fix)


def is_half_shared(root: str) -> bool:
    """Whether a root of this user's has a group's modes, and gpucache's directory there too, but no mark."""
    try:
        found = [os.stat(root), os.stat(paths.ours(root))]
    except OSError:
        return False
    is_own = found[0].st_uid == os.geteuid()
    is_open = all(is_groups(one.st_mode) for one in found)
    return is_own and is_open and mark_of(root) is None


@tells(
    {
        "no-acls": "the mount of a group's root has no ACLs: what torch and other JITs cache is each member's own"
    }
)
def no_acls(case: Case) -> Iterator[Finding]:
    """Find where members share Triton's kernels only."""
    if sharing_of(case.root, Trust.parse(case.environ)) != "group":
        return
    if may_have_default_acl(case.root):
        return
    fact = "its mount has no ACLs: what torch and other JITs cache is each member's own, in members/<uid>"
    fix = (
        "choose a root on a mount with POSIX ACLs (ext4, xfs), if members are to share that as well"
    )
    yield Finding("no-acls", "warning", case.root, fact, fix)
