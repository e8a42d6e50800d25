"""What `provision --shared` says of a root that is there already, and asks before it changes that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gpucache.cli.common import counted, tell
from gpucache.cli.terminal import check_answerable, confirmed, progress, say
from gpucache.disk.refusal import quoted
from gpucache.units import size
from gpucache.values import Value, as_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.disk.sharing import Sharing
    from gpucache.upkeep.reshare import Resharing
    from gpucache.upkeep.reshare_act import Reshared

_PUBLIC: dict[Sharing, str] = {
    "private": "nobody but its owner",
    "read": "everybody, to read",
}


class Call(Value, kw_only=True):
    """With whom a root is to be shared, and what the person at the terminal has said to questions about that."""

    sharing: Sharing
    group: str | None
    dry_run: bool
    yes: bool


class Change(Value, kw_only=True):
    """What was planned for a root, and done."""

    planned: Resharing
    done: Reshared | None = None
    """None where nothing was done: there was nothing to do, it was a dry run, or the answer was no."""
    dry_run: bool = False
    refused: bool = False
    """Whether the answer was no."""

    @property
    def is_whole(self) -> bool:
        """Whether the root may be marked as it is shared now."""
        return not self.dry_run and not self.refused and not (self.done and self.done.uncopied)

    @property
    def is_own(self) -> bool:
        """Whether the root is this user's to provision, too; root changes the root of another user as that user."""
        return self.planned.uid == os.geteuid()

    def row(self) -> dict[str, Any]:
        """The fields as JSON."""
        planned = self.planned
        done = None
        if self.done is not None:
            failures = [as_dict(failure) for failure in self.done.failures]
            done = {**as_dict(self.done), "failures": failures}
        return {
            "before": planned.before,
            "after": planned.wanted.sharing,
            "gid": planned.wanted.gid,
            "acl": planned.wanted.acl,
            "uid": planned.uid,
            "directories": planned.directories,
            "files": planned.files,
            "bytes": planned.bytes,
            "copied_files": planned.copied_files,
            "copied_bytes": planned.copied_bytes,
            "linked_files_left": planned.shared_links,
            "others": [as_dict(other) for other in planned.others],
            "taken": list(planned.taken),
            "left": list(planned.left),
            "dry_run": self.dry_run,
            "done": done,
        }


def reshared(root: str, call: Call, environ: Mapping[str, str], quiet: bool) -> Change | None:
    """Plan to share a root that is there, show the plan unless ``quiet``, ask, and change the root.

    None where nothing is there yet; then the root is made, if it has to be of a group that was named.

    A root that is to be shared as it is already is mended without a question, and so is one in which nothing lies but
    what provisioning has made.

    Raises:
        GpuCacheError: it cannot be shared so.
        UsageError: there is a question, and nobody to answer it.
    """
    from gpucache.disk.root import is_empty
    from gpucache.disk.vetting import Trust
    from gpucache.upkeep.reshare import make_for_group, plan
    from gpucache.upkeep.reshare_act import apply

    if not os.path.isdir(root) or is_empty(root):
        if call.group is not None and not call.dry_run:
            make_for_group(root, call.group)
        return None
    with progress("looking"):
        planned = plan(root, call.sharing, call.group, Trust.parse(environ))
    if not quiet:
        _show(planned)
    if call.dry_run or not planned.changes_anything:
        return Change(planned=planned, dry_run=call.dry_run)
    lets_in = planned.changes_mark or planned.lets_in
    is_asked = lets_in and (planned.cached_files > 0 or planned.left)
    if is_asked and not call.yes:
        check_answerable()
        if not confirmed(_question(planned)):
            say("note: nothing was changed")
            return Change(planned=planned, refused=True)
    with progress("sharing") as show:
        done = apply(planned, show)
    _tell_result(planned, done)
    return Change(planned=planned, done=done)


def tell_members(root: str) -> None:
    """Say of a root that a group shares from now on what its members have to know."""
    from gpucache.disk.group_names import group_name
    from gpucache.environment import ROOT, TRUST_GROUPS
    from gpucache.upkeep.sharing_group import is_of_one_user

    found = os.stat(root)
    name = group_name(found.st_gid)
    say(f"note: {root} is shared with group {name}, so that each member can run code as each other")
    if is_of_one_user(found.st_uid, found.st_gid):
        say(f"note: that group has nobody in it but uid {found.st_uid}: name the team's by --group")
    else:
        say(f"note: each member sets {ROOT}={quoted(root)} {TRUST_GROUPS}={found.st_gid}")


def _with_whom(sharing: Sharing, gid: int | None) -> str:
    from gpucache.disk.group_names import group_name

    return f"group {group_name(gid)}" if gid is not None else _PUBLIC[sharing]


def _as_before(planned: Resharing) -> str:
    if planned.before == "private":
        return "is private"
    gid = planned.gid_before if planned.before == "group" else None
    return f"is shared with {_with_whom(planned.before, gid)}"


def _show(planned: Resharing) -> None:
    """Say what changes, and what stays."""
    from gpucache.upkeep.sharing_group import is_of_one_user

    if planned.changes_mark:
        to = _with_whom(planned.wanted.sharing, planned.wanted.gid)
        say(f"note: {planned.root} {_as_before(planned)}, and comes to be shared with {to}")
    gid = planned.wanted.gid
    if planned.changes_mark and gid is not None and is_of_one_user(planned.uid, gid):
        say(f"note: that group has nobody in it but uid {planned.uid}: name the team's by --group")
    if planned.directories or planned.files:
        say(f"note: {_amount(planned)} of uid {planned.uid} get other modes")
    if planned.copied_files:
        files = counted(planned.copied_files, "file is", "files are")
        say(
            f"note: {files} linked from outside the root, and copied first ({size(planned.copied_bytes)})"
        )
    if planned.shared_links:
        files = counted(planned.shared_links, "file", "files")
        say(
            f"note: {files} with links outside the root stay as they are: another member may have put them there"
        )
    tell(
        [
            f"note: {path}, which another member made, comes into the quarantine, or is copied"
            for path in planned.taken
        ]
    )
    _tell_others(planned)
    tell([f"note: {planned.root}/{name} is no cache, and stays as it is" for name in planned.left])
    if planned.wanted.sharing == "group" and not planned.wanted.acl:
        say(
            "note: the mount has no ACLs: each member gets directories of its own for what torch and other "
            f"JITs write, in {planned.root}/members"
        )


def _tell_others(planned: Resharing) -> None:
    lines = []
    for other in planned.others:
        what = counted(other.count, "directory or file", "directories and files")
        line = f"note: {what} of uid {other.uid} stay as they are, such as {other.example}"
        if planned.wanted.sharing == "group":
            line += "; that user mends them by the same command"
        elif planned.wanted.sharing == "read":
            line = f"note: {what} of uid {other.uid}, such as {other.example}, are taken out of what others may read"
        else:
            line += ", and are used: `gpucache clean` removes them"
        lines.append(line)
    tell(lines)


def _amount(planned: Resharing) -> str:
    directories = counted(planned.directories, "directory", "directories")
    files = counted(planned.files, "file", "files")
    return f"{directories} and {files} ({size(planned.bytes)})"


def _question(planned: Resharing) -> str:
    if planned.wanted.gid is not None:
        to = _with_whom("group", planned.wanted.gid)
        return f"Share {planned.root} with {to}, so that each member can run code as each other?"
    if planned.wanted.sharing == "read":
        return f"Let everybody read what is published in {planned.root}?"
    return f"Make {planned.root} private again?"


def _tell_result(planned: Resharing, done: Reshared) -> None:
    tell(
        [
            f"warning: {planned.root}/{failure.path}: {failure.why}; it stays"
            for failure in done.failures
        ]
    )
    if done.uncopied:
        files = counted(done.uncopied, "file", "files")
        say(
            f"warning: {files} could not be copied (in use, or the disk is full), and the root is not marked yet: "
            "say the same again"
        )
