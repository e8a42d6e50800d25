"""What `doctor` asks about the mount that the root is on: its type and options, what it refuses, who else shares it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.looking import nearest
from gpucache.disk import mounts
from gpucache.disk.capabilities import known, learn
from gpucache.disk.fitness import fitness, network_file_system
from gpucache.disk.other_nodes import OtherNode, other_nodes
from gpucache.disk.refusal import may
from gpucache.environment import ROOT
from gpucache.findings import Finding

_ELSEWHERE = f"set {ROOT} to a directory on a local disk, if that matters"
_SHOWN = 4


@tells(
    {
        "network-fs": "the root is on a network file system",
        "tmpfs": "the root is in memory",
    }
)
def file_system(case: Case) -> Iterator[Finding]:
    """Warn of a file system that other nodes share, or whose files are gone after a reboot."""
    root = case.root
    where = nearest(root)
    network = network_file_system(where)
    kind = mounts.file_system(where)
    if network is not None:
        fact = f"it is on a network file system ({network}), where Triton is known to fail with stale handles"
        fix = f"set {ROOT} to a directory on a local disk"
        yield Finding("network-fs", "warning", root, fact, fix)
    elif kind in ("tmpfs", "ramfs"):
        fact = f"it is in memory ({kind}): what it holds takes RAM, and is gone after a reboot"
        fix = f"set {ROOT} to a directory on a disk"
        yield Finding("tmpfs", "warning", root, fact, fix)


@tells(
    {
        "noexec": "nothing can be loaded from the root's file system",
        "read-only": "the root's file system is mounted read-only",
        "not-writable": "this user may not write the root",
    }
)
def mount_options(case: Case) -> Iterator[Finding]:
    """Find a mount where nothing can be written or executed.

    Read-only is a warning, since hits go on; ``noexec`` is an error, since stock Triton and torch fail at once.
    """
    root = case.root
    where = nearest(root)
    disk = fitness(where)
    if disk.noexec:
        fact = "its file system is mounted noexec: Triton and torch cannot load what they compile"
        fix = f"mount it with exec, or set {ROOT} to a directory that is"
        yield Finding("noexec", "error", root, fact, fix)
    if disk.read_only:
        fact = "its file system is mounted read-only: what is cached is used, nothing new is kept"
        fix = f"mount it writable, or set {ROOT} to a directory that is"
        yield Finding("read-only", "warning", root, fact, fix)
    elif not case.unsafe and not may(where, os.W_OK | os.X_OK):
        fact = f"this user may not write {where}: what is cached is used, nothing new is kept"
        fix = f"set {ROOT} to a directory of your own"
        yield Finding("not-writable", "warning", root, fact, fix)


@tells(
    {
        "no-directory-rename": "the root's mount renames no directory, and entries come file by file",
        "no-hard-links": "the root's mount makes no hard links, and views are copies",
        "no-set-times": "the root's mount sets no times, and stamps are written",
        "no-flock": "files cannot be locked on the root's mount",
    }
)
def refused(case: Case) -> Iterator[Finding]:
    """Tell what the root's mount refuses, and what is done instead: what was found when that was tried last.

    Tries nothing: `provision` does, once for each node and mount, and ``doctor --probe`` again.
    """
    found = known(case.root)
    if found is None:
        return
    for code, fact in found.refused().items():
        yield Finding(code, "warning", case.root, fact, _ELSEWHERE)


@tells({"not-tried": "what the root's mount can do could not be tried"})
def tried(root: str) -> Iterator[Finding]:
    """Try again what the root's mount can do, and keep the answer; tell where nothing can be made there."""
    if learn(root, again=True) is None:
        fact = "nothing can be made there, so that what its mount can do cannot be tried"
        fix = f"run `gpucache provision --root {shlex.quote(root)}` as a user who may write there"
        yield Finding("not-tried", "error", root, fact, fix)


@tells({"other-nodes": "other nodes use the root, and locks may reach one node only"})
def shared_by_nodes(case: Case) -> Iterator[Finding]:
    """Warn of other nodes on a mount whose locks may not reach them: each node then compiles for itself."""
    kind = network_file_system(nearest(case.root))
    if kind is None:
        return
    others = other_nodes(case.root)
    if not others:
        return
    names = [_name(other) for other in others[:_SHOWN]]
    more = len(others) - len(names)
    if more:
        names.append(f"{more} more")
    fact = (
        f"{', '.join(names)} use it too, and locks on its mount ({kind}) may reach one node only: kernels that "
        "two nodes miss at once are compiled by each of them, and what a node that died has left stays for a day"
    )
    fix = f"nothing, if that is meant; else set {ROOT} to a directory of each node's own"
    yield Finding("other-nodes", "warning", case.root, fact, fix)


def _name(other: OtherNode) -> str:
    return f"node {other.host or other.node}"
