"""What `doctor` asks about trust: who may write the root, and what is below."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping

from gpucache import environment
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.looking import listed
from gpucache.diagnosis.sharing_checks import declared, is_half_shared
from gpucache.disk.files import inside
from gpucache.disk.fresh import fresh_part
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.refusal import may
from gpucache.disk.refusal import refusal as refused
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.findings import Finding
from gpucache.layout import paths

Vet = Callable[[str, Trust], object]
"""A function of `gpucache.disk.vetting`, which raises for a path that it refuses."""


@tells(
    {
        "unsafe-directory": "somebody else could plant code in the cache",
        "broken-path": "the way to a directory of the cache does not lead to one",
    }
)
def unsafe(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find where somebody else could plant code: the root, gpucache's directories below, each device's, the locks.

    What is below a directory that is refused, or that this user may not enter, is not looked at.
    """
    trust = Trust.parse(environ).in_root(root)
    refused = refusal(root, trust, vet)
    may_enter = not os.path.isdir(root) or may(root, os.X_OK)
    if refused is None and not may_enter:
        refused = _closed(root)
    if refused is not None:
        yield refused
        return
    closed: tuple[str, ...] = ()
    for path, vets in _vetted(root):
        if path.startswith(closed):
            continue  # below what is refused already, so that it is no news
        refused = refusal(path, trust, vets)
        if refused is not None:
            closed += (f"{path}/",)
            yield refused


def _vetted(root: str) -> Iterator[tuple[str, Vet]]:
    """The paths below a root that must be safe, and the function that vets each of them."""
    directories = [*paths.our_directories(root), LockPlace(root).found()]
    for path in dict.fromkeys(directories):  # the locks are listed twice where the disk is local
        yield path, vet_child
    record = paths.record_path(root, paths.host_name())
    yield record, vet_file
    for path in listed(paths.triton_directory(root)):
        name = os.path.basename(path)
        if paths.is_device_directory_name(name):
            yield path, vet_child


def refusal(path: str, trust: Trust, vets: Vet) -> Finding | None:
    """A finding that says why ``vets`` refuses a path; None where it does not."""
    try:
        vets(path, trust)
    except UnsafeDirectoryError as error:
        return Finding("unsafe-directory", "error", error.path, error.fact, error.hint)
    except ProvisionError as error:
        if error.errno == errno.EACCES:
            return Finding("unreadable", "warning", path, os.strerror(errno.EACCES), error.hint)
        fact = os.strerror(error.errno or errno.EIO)
        return Finding("broken-path", "error", error.path, fact, error.hint)
    return None


def _closed(path: str) -> Finding:
    """The finding for a directory that this user may not look into."""
    fact = os.strerror(errno.EACCES)
    hint = refused(path, OSError(errno.EACCES, fact), "look at").hint
    return Finding("unreadable", "warning", path, fact, hint)


@tells({"no-views": "TRITON_CACHE_DIR cannot be used, and kernels are used from the store itself"})
def own_directory(case: Case) -> Iterator[Finding]:
    """Find what keeps the plug-in from the directory that `TRITON_CACHE_DIR` names.

    Where somebody else could plant code there, nothing is shared, however safe the root is; where it cannot be written,
    there are no views. One that is fresh on purpose is Triton's own affair.
    """
    environ = case.environ
    directory = environment.TRITON_DIRECTORY.text(environ)
    if not directory or any(environment.turned_off(environ)):
        return
    is_asked_for = environment.SHARE.read(environ) is not None
    if not is_asked_for and fresh_part(directory, case.root) is not None:
        return
    path = paths.absolute(directory)
    refused = None if inside(path, case.root) else refusal(path, Trust.parse(environ), vet)
    fix = f"set {environment.TRITON_DIRECTORY} to a directory of your own"
    if refused is not None and refused.code == "unsafe-directory":
        yield Finding(
            refused.code, refused.level, refused.subject, refused.fact, f"{refused.fix}; or {fix}"
        )
    elif refused is not None:
        fact = f"{refused.fact}: kernels are used from the store itself"
        yield Finding("no-views", "warning", path, fact, fix)
    elif os.path.isdir(path) and not may(path, os.W_OK | os.X_OK):
        fact = "this user may not write it: kernels are used from the store itself"
        fix = f"chmod u+rwx {shlex.quote(path)}, or {fix}"
        yield Finding("no-views", "warning", path, fact, fix)


@tells({"group-writable": "everybody in a group may write the root"})
def group_writable(case: Case) -> Iterator[Finding]:
    """Warn of a root that a group may write and that was not shared with it: `vet` trusts groups all the same."""
    root = case.root
    if not os.path.isdir(root) or declared(root, Trust.parse(case.environ)) == "group":
        return
    found = os.stat(root)
    if case.unsafe and os.geteuid() not in (0, found.st_uid):
        return  # told already, and the mode is not this user's to change
    if found.st_mode & stat.S_IWGRP and not is_half_shared(root):
        mode = stat.S_IMODE(found.st_mode)
        fact = f"everybody in group {found.st_gid} may write it (mode {mode:04o})"
        fix = f"chmod g-w {shlex.quote(root)}, unless that group is trusted: a cache is executed"
        yield Finding("group-writable", "warning", root, fact, fix)
