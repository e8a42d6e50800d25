"""What `doctor` asks about locks: whose holders have died, or hang."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator

from gpucache import environment
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.looking import listed
from gpucache.disk.files import STALE_S
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import PROVISION_LOCK, ROOTS_LOCKS, holder, is_free, serves
from gpucache.disk.refusal import may
from gpucache.findings import Finding
from gpucache.remote.pull_files import remarks
from gpucache.units import ago

_PROVISIONING_S = 60.0
_AGAIN = "`gpucache remote check` tries the remote, `gpucache pull` the pack, and the next `gpucache run` again"


@tells(
    {
        "lock-stale": "the holder of a kernel's lock has died",
        "lock-stalled": "the holder of a kernel's lock shows no sign of life",
    }
)
def kernel_locks(case: Case) -> Iterator[Finding]:
    """Find locks whose holder has died, or has shown no sign of life for as long as a waiter waits."""
    stall_s = environment.STALL_TIMEOUT.read_or_default(case.environ)
    directory = LockPlace(case.root).found()
    told_elsewhere = {remark.path for remark in remarks(directory)}
    for path in listed(directory):
        name = os.path.basename(path)
        if not name.endswith(".lock") or name in ROOTS_LOCKS or path in told_elsewhere:
            continue
        age_s = _age_s(path)
        if age_s is None or age_s <= min(stall_s, STALE_S):
            continue  # a lock in use is not touched
        if serves(path):
            continue
        if not is_free(path):
            if age_s > stall_s:
                fact = f"{holder(path)} holds it, and has given no sign of life for {age_s:.0f} s"
                fix = "if that process hangs, kill it: its death frees the lock"
                yield Finding("lock-stalled", "warning", path, fact, fix)
        elif age_s > STALE_S:
            fact = f"{holder(path)} died with it {age_s / 3600:.0f} h ago; nobody waits for it"
            fix = f"find out why it died (`dmesg`: out of memory?), and rm {shlex.quote(path)}"
            yield Finding("lock-stale", "warning", path, fact, fix)


@tells(
    {
        "pull-failed": "what `gpucache run` was to pull while a program starts did not come",
        "pull-older": "the pack that `gpucache run` has pulled is older than one that was seen here",
        "pull-unfit": "of the pack that `gpucache run` has pulled nothing is for this node",
    }
)
def pulls(case: Case) -> Iterator[Finding]:
    """Warn of what is wrong with the last pull of each pack, of which no program tells that has started since."""
    for remark in remarks(LockPlace(case.root).found()):
        fact = f"{remark.text} ({ago(time.time() - remark.since)})"
        if remark.kind == "failed":
            yield Finding("pull-failed", "warning", remark.path, fact, _AGAIN)
        elif remark.kind == "older":
            fix = "ask who makes the packs whether that is meant; `gpucache remote ls` lists what is there"
            yield Finding("pull-older", "warning", remark.path, fact, fix)
        else:
            fix = "pack for this node too (`gpucache warm --arch …`), or name another pack in GPUCACHE_PACK"
            yield Finding("pull-unfit", "warning", remark.path, fact, fix)


@tells({"provision-lock-held": "somebody has been provisioning for more than a minute"})
def provision_lock(case: Case) -> Iterator[Finding]:
    """Warn of a process that has held the lock of `provision` for long. The lock's file itself is there for good."""
    path = f"{LockPlace(case.root).found()}/{PROVISION_LOCK}"
    signature = f"{path}.holder"
    since_s = _age_s(signature)
    if since_s is None or since_s <= _PROVISIONING_S:
        return
    if _age_s(path) is None or is_free(path):
        return
    fact = f"{holder(signature)} has held it for {since_s:.0f} s, and nobody else can provision"
    fix = "wait for that process, or stop it: its death frees the lock"
    yield Finding("provision-lock-held", "warning", path, fact, fix)


def _age_s(path: str) -> float | None:
    """How many seconds ago a plain file was written; None for a file that cannot be opened without harm.

    That is one that is not there, that this user may not read, or that is no plain file: opening a FIFO would wait.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    is_plain = stat.S_ISREG(found.st_mode)
    if not is_plain or not may(path, os.R_OK):
        return None
    return time.time() - found.st_mtime
