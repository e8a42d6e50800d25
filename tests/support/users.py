"""Other users of the machine, and what belongs to them."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from gpucache.configuration import reading, toml
from gpucache.directories import making, other_hosts, provision
from gpucache.disk import access_acl, default_acl, lock_place, refusal, sharing, unmapped, ways_out
from gpucache.machine import nvml

ADA, BOB = 65534, 65533  # two users who are not root

# loaded while root: the interpreter may lie where no other user can read it
assert filelock.FileLock
assert shlex.quote
for _module in (
    *(access_acl, default_acl, lock_place, making, nvml, other_hosts, provision),
    *(reading, refusal, sharing, toml, unmapped, ways_out),
):
    assert _module


@contextmanager
def acting_as(uid: int, *members_of: int) -> Iterator[None]:
    """Be another user for the kernel (effective ids, no groups but ``members_of``, no capabilities)."""
    groups = os.getgroups()
    temporary = tempfile.tempdir
    os.setgroups(members_of)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        tempfile.tempdir = (
            temporary  # that of the other user, who may not reach pytest's, is not root's
        )


def directory(path: Path, mode: int = 0o755, uid: int = 0) -> Path:
    path.mkdir(exist_ok=True)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


def link(path: Path, target: str | Path, uid: int = 0) -> Path:
    path.symlink_to(target)
    os.chown(path, uid, uid, follow_symlinks=False)
    return path


def open_the_way_to(path: Path) -> None:
    """Let every user come as far as a path below pytest's directories, which are their owner's alone."""
    for above in path.parents:
        if not above.stat().st_mode & stat.S_IXOTH:
            above.chmod(0o755)
