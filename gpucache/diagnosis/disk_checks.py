"""What `doctor` asks about the disk: who may write the root, how fit the disk is, its locks and its times.

What the mount can do, and who shares it, is in `mount_checks`.
The measures by which a file system is fit for a cache (space, inodes, mount options) are in `gpucache.disk.fitness`.
Each check yields its findings, and raises `OSError` for what it cannot look at. No check writes anything but
`clock_skew`, which makes a file for an instant.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from gpucache import environment
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.disk.files import STAGED, STALE_S, inside, size_of
from gpucache.disk.fitness import fitness
from gpucache.disk.lock_place import LockPlace
from gpucache.disk.locks import PROVISION_LOCK, holder, is_free
from gpucache.disk.refusal import may
from gpucache.disk.refusal import refusal as refused
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.environment import ROOT
from gpucache.errors import GpuCacheError, ProvisionError, UnsafeDirectoryError
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.store import limit
from gpucache.store.manifest import MANIFEST
from gpucache.store.recency import SKEW_S
from gpucache.store.size import total_bytes
from gpucache.units import size

Vet = Callable[[str, Trust], object]
"""A function of `gpucache.disk.vetting`, which raises for a path that it refuses."""

_PROVISIONING_S = 60.0
_FUTURE_S = 60.0
_SAMPLE = 64


def nearest(path: str) -> str:
    """The path itself where it exists, else the nearest directory above it that does."""
    above = os.path.dirname(path)
    while not os.path.exists(path) and above != path:
        path = above
        above = os.path.dirname(path)
    return path


def _listed(directory: str) -> list[str]:
    """The paths of what is in a directory; none where there is no such directory."""
    try:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


# ---- who may write


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
    trust = Trust.parse(environ)
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
    for path in _listed(paths.triton_directory(root)):
        name = os.path.basename(path)
        if paths.is_device_name(name) or name == "None":  # torch's, for no device in particular
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


@tells({"group-writable": "everybody in a group may write the root"})
def group_writable(case: Case) -> Iterator[Finding]:
    """Warn of a root that a group may write: `vet` trusts groups, but the user may not have meant to."""
    root = case.root
    if not os.path.isdir(root):
        return
    found = os.stat(root)
    if found.st_mode & stat.S_IWGRP:
        mode = stat.S_IMODE(found.st_mode)
        fact = f"everybody in group {found.st_gid} may write it (mode {mode:04o})"
        fix = f"chmod g-w {shlex.quote(root)}, unless that group is trusted: a cache is executed"
        yield Finding("group-writable", "warning", root, fact, fix)


# ---- how fit the disk is


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
    elif not may(where, os.W_OK | os.X_OK):
        fact = f"this user may not write {where}: what is cached is used, nothing new is kept"
        fix = f"set {ROOT} to a directory of your own"
        yield Finding("not-writable", "warning", root, fact, fix)


@tells(
    {
        "little-space": "the root's file system is nearly full",
        "few-inodes": "the root's file system has few inodes left",
    }
)
def room(case: Case) -> Iterator[Finding]:
    """Warn of too little space and too few inodes, by the measures by which `provision` warns."""
    root = case.root
    disk = fitness(nearest(root))
    fix = f"make room (`gpucache prune`), or set {ROOT} to a directory on another disk"
    if disk.little_space_mib is not None:
        fact = f"its file system has {disk.little_space_mib} MiB left"
        yield Finding("little-space", "warning", root, fact, fix)
    if disk.few_inodes is not None:
        fact = f"its file system has {disk.few_inodes} inodes left, and a kernel takes nine"
        yield Finding("few-inodes", "warning", root, fact, fix)


@tells({"over-limit": "the store takes more than GPUCACHE_MAX_SIZE allows"})
def over_limit(case: Case) -> Iterator[Finding]:
    """Warn of a store that cannot keep its limit, since all that it has was used in the last minutes."""
    variable = environment.MAX_SIZE
    where = nearest(case.root)
    allowed = limit.max_size_bytes(where, case.environ)
    taken = total_bytes(case.root)
    if allowed and taken is not None and taken > allowed:
        fact = f"the store takes {size(taken)}, and {variable} allows {size(allowed)}"
        fix = f"raise {variable}, or wait: what was used in the last minutes is not evicted"
        yield Finding("over-limit", "warning", case.root, fact, fix)


@tells({"headers-elsewhere": "torch keeps precompiled headers in its default directory"})
def headers(case: Case) -> Iterator[Finding]:
    """Warn of headers outside the root.

    Torch ignores `TORCHINDUCTOR_CACHE_DIR` for them (2.13.0 `_inductor/codecache.py`, ``_HEADER_DIR``).

    Raises:
        ConfigurationError: there is no temporary directory.
    """
    directory = f"{paths.default_root(case.environ)}/precompiled_headers"
    if not os.path.isdir(directory):
        return
    if inside(directory, case.root):
        return
    taken_mb = size_of(directory) / 1e6
    fact = (
        f"{taken_mb:.0f} MB of torch's precompiled headers, which it keeps here whatever the root"
    )
    fix = f"rm -r {shlex.quote(directory)} while no job runs; set TMPDIR to have them elsewhere"
    yield Finding("headers-elsewhere", "warning", directory, fact, fix)


# ---- locks


@tells(
    {
        "lock-stale": "the holder of a kernel's lock has died",
        "lock-stalled": "the holder of a kernel's lock shows no sign of life",
    }
)
def kernel_locks(case: Case) -> Iterator[Finding]:
    """Find locks whose holder has died, or has shown no sign of life for as long as a waiter waits."""
    stall_s = environment.STALL_TIMEOUT.read_or_default(case.environ)
    for path in _listed(LockPlace(case.root).found()):
        name = os.path.basename(path)
        if not name.endswith(".lock") or name == PROVISION_LOCK:
            continue
        age_s = _age_s(path)
        if age_s is None or age_s <= min(stall_s, STALE_S):
            continue  # a lock in use is not touched
        if not is_free(path):
            if age_s > stall_s:
                fact = f"{holder(path)} holds it, and has given no sign of life for {age_s:.0f} s"
                fix = "if that process hangs, kill it: its death frees the lock"
                yield Finding("lock-stalled", "warning", path, fact, fix)
        elif age_s > STALE_S:
            fact = f"{holder(path)} died with it {age_s / 3600:.0f} h ago; nobody waits for it"
            fix = f"find out why it died (`dmesg`: out of memory?), and rm {shlex.quote(path)}"
            yield Finding("lock-stale", "warning", path, fact, fix)


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


# ---- times


@tells({"clock-skew": "the file system's clock is not this machine's"})
def clock_skew(case: Case) -> Iterator[Finding]:
    """Compare the time of a new file with this machine's clock, unless no file may be made there."""
    try:
        skew_s = _skew_s(case.root, Trust.parse(case.environ))
    except (OSError, GpuCacheError):
        return  # read-only, full, unsafe: other checks tell
    if skew_s is not None and abs(skew_s) > SKEW_S:
        which = "ahead of" if skew_s > 0 else "behind"
        fact = f"the file system's clock is {abs(skew_s):.0f} s {which} this machine's"
        fact += ": what is old looks new, or new old"
        fix = "synchronise the clocks of this machine and of the file server (chronyc tracking, timedatectl)"
        yield Finding("clock-skew", "warning", case.root, fact, fix)


def _skew_s(root: str, trust: Trust) -> float | None:
    """By how many seconds at least the file system's clock is ahead; None where nobody has provisioned the root.

    Raises:
        GpuCacheError, OSError: no file may be made there, or none can be.
    """
    directory = paths.ours(root, "tmp")
    if not vet(root, trust):
        return None
    if not vet_child(directory, trust):
        return None
    before = time.time()
    # If this process is killed here, a sweep knows the file by its name.
    fd, probe = tempfile.mkstemp(prefix=STAGED, dir=directory)
    try:
        made = os.fstat(fd).st_mtime
        after = time.time()
    finally:
        os.close(fd)
        os.unlink(probe)
    if made > after:
        return made - after
    return min(0.0, made - before)


@tells({"future-times": "files of the cache have times in the future"})
def future_times(case: Case) -> Iterator[Finding]:
    """Look at the times of the record and of a few entries: an entry that seems used in the future is never pruned."""
    record = paths.record_path(case.root, paths.host_name())
    manifests = islice(_manifests(case.root), _SAMPLE)
    sample = [record, *manifests]
    times = {path: _modified(path) for path in sample}
    now = time.time()
    late = [path for path in sample if times[path] > now + _FUTURE_S]
    if not late:
        return
    ahead_s = max(times.values()) - now
    fact = f"{len(late)} of {len(sample)} files looked at, such as {late[0]}, "
    fact += f"are up to {ahead_s:.0f} s in the future"
    found = f"find {shlex.quote(paths.ours(case.root))} -newermt now -type f"
    fix = rf"set the clock right, then {found} \( -name {MANIFEST} -o -path '*/devices/*' \) -exec touch {{}} +"
    yield Finding("future-times", "warning", case.root, fact, fix)


def _manifests(root: str) -> Iterator[str]:
    """The paths at which the entries of the store have their manifests, in order of their keys."""
    for shard in _listed(paths.ours(root, "store")):
        for entry in _listed(shard):
            yield f"{entry}/{MANIFEST}"


def _modified(path: str) -> float:
    """When a file was written last; 0 for a file that is not there."""
    try:
        return os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0
