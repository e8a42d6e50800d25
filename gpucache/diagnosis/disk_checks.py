"""What `gpucache.doctor` asks about the disk: who may write the root, where it lies, its locks and its times.

Each check yields what it finds, and lets an `OSError` of what it cannot look at out. Nothing is made but the probe of
`clock_skew`.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from gpucache import environment
from gpucache.directories.provision import FEW_INODES, LITTLE_SPACE_BYTES
from gpucache.disk import mounts
from gpucache.disk.files import STAGED, inside
from gpucache.disk.locks import holder, is_free
from gpucache.disk.vetting import Trust, vet, vet_child, vet_file
from gpucache.errors import GpuCacheError, ProvisionError, UnsafeDirectoryError
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.report import strays
from gpucache.store import limit
from gpucache.store.key_lock import lock_directory
from gpucache.store.manifest import MANIFEST
from gpucache.store.size import total_bytes
from gpucache.units import size

DEVICE_NAME = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?|None")
"""The last part of a device directory's path, as we and torch name it (torch: ``None`` for no device in particular)."""

_PROVISIONING_S = 60.0
_SKEW_S = 2.0
_FUTURE_S = 60.0
_SAMPLE = 64


def _nearest(path: str) -> str:
    """The path, or of one that is not there, what would hold it."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _listed(directory: str) -> list[str]:
    try:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


# ---- who may write


def unsafe(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where somebody else could plant code: the root, what is ours in it, the device directories, the locks.

    A root that is refused itself, or that this user may not enter, is not looked into.
    """
    trust = Trust.parse(environ)
    refused = _refusal(root, trust, vet)
    if refused is None and os.path.isdir(root) and not _may(root, os.X_OK):
        refused = _closed(root)
    if refused is not None:
        yield refused
        return
    closed: list[str] = []
    for path, check in _vetted(root):
        refused = None if path.startswith(tuple(closed)) else _refusal(path, trust, check)
        if refused is not None:
            closed.append(f"{path}/")  # what is below it is no news
            yield refused


def _vetted(root: str) -> Iterator[tuple[str, Callable[[str, Trust], object]]]:
    own = (paths.ours(root, name) for name in ("store", "quarantine", "stats"))
    for path in dict.fromkeys((*paths.our_directories(root), *own, lock_directory(root))):
        yield path, vet_child
    yield paths.record_path(root, paths.host_name()), vet_file
    for path in _listed(f"{root}/triton"):
        if DEVICE_NAME.fullmatch(os.path.basename(path)):
            yield path, vet_child


def _refusal(path: str, trust: Trust, check: Callable[[str, Trust], object]) -> Finding | None:
    try:
        check(path, trust)
    except UnsafeDirectoryError as error:
        return Finding("unsafe-directory", "error", error.path, error.fact, error.hint)
    except ProvisionError as error:
        if error.errno == errno.EACCES:
            return _closed(path)
        return Finding(
            "broken-path", "error", error.path, os.strerror(error.errno or errno.EIO), error.hint
        )
    return None


def _closed(path: str) -> Finding:
    return Finding(
        "unreadable", "warning", path, os.strerror(errno.EACCES), "look at it as its owner"
    )


def _may(path: str, mode: int) -> bool:
    """Whether the effective user may, where the system can tell."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def group_writable(root: str) -> Iterator[Finding]:
    """A group is trusted (`vet`), but whoever provisioned may not have meant it."""
    if not os.path.isdir(root):
        return
    found = os.stat(root)
    if found.st_mode & stat.S_IWGRP:
        fact = f"everybody in group {found.st_gid} may write it (mode {stat.S_IMODE(found.st_mode):04o})"
        fix = f"chmod g-w {shlex.quote(root)}, unless that group is trusted: a cache is executed"
        yield Finding("group-writable", "warning", root, fact, fix)


# ---- where the root lies


def file_system(root: str) -> Iterator[Finding]:
    """A file system that other nodes share, or that is gone after a reboot."""
    place = _nearest(root)
    kind = mounts.file_system(place)
    if not mounts.is_local(place):
        fact = f"it is on a network file system ({kind}), where Triton is known to fail with stale handles"
        yield Finding(
            "network-fs",
            "warning",
            root,
            fact,
            f"set {environment.ROOT} to a directory on a local disk",
        )
    elif kind in ("tmpfs", "ramfs"):
        fact = f"it is in memory ({kind}): what it holds takes RAM, and is gone after a reboot"
        yield Finding(
            "tmpfs", "warning", root, fact, f"set {environment.ROOT} to a directory on a disk"
        )


def mount_options(root: str) -> Iterator[Finding]:
    """Read-only is a warning, since hits go on; ``noexec`` is an error, since stock Triton and torch fail at once."""
    place = _nearest(root)
    flags = os.statvfs(place).f_flag if hasattr(os, "statvfs") else 0
    if flags & getattr(os, "ST_NOEXEC", 0):
        fact = "its file system is mounted noexec: Triton and torch cannot load what they compile"
        fix = f"mount it with exec, or set {environment.ROOT} to a directory that is"
        yield Finding("noexec", "error", root, fact, fix)
    if flags & getattr(os, "ST_RDONLY", 0):
        fact = "its file system is mounted read-only: what is cached is used, nothing new is kept"
        fix = f"mount it writable, or set {environment.ROOT} to a directory that is"
        yield Finding("read-only", "warning", root, fact, fix)
    elif not _may(place, os.W_OK | os.X_OK):
        fact = f"this user may not write {place}: what is cached is used, nothing new is kept"
        yield Finding(
            "not-writable",
            "warning",
            root,
            fact,
            f"set {environment.ROOT} to a directory of your own",
        )


def room(root: str) -> Iterator[Finding]:
    """Space and inodes, by the measure of `provision`."""
    if not hasattr(os, "statvfs"):
        return
    disk = os.statvfs(_nearest(root))
    fix = f"make room (`gpucache prune`), or set {environment.ROOT} to a directory on another disk"
    free = disk.f_bavail * disk.f_frsize
    if free < LITTLE_SPACE_BYTES:
        yield Finding(
            "little-space", "warning", root, f"its file system has {free // 2**20} MiB left", fix
        )
    if disk.f_files and disk.f_favail < FEW_INODES:
        fact = f"its file system has {disk.f_favail} inodes left, and a kernel takes nine"
        yield Finding("few-inodes", "warning", root, fact, fix)


def over_limit(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """A store that cannot keep its limit, since all of it was used in the last minutes.

    Raises:
        OSError: the file system does not answer.
    """
    allowed = limit.max_size_bytes(_nearest(root), environ)
    taken = total_bytes(root)
    if allowed and taken is not None and taken > allowed:
        fact = f"the store takes {size(taken)}, and {environment.MAX_SIZE} allows {size(allowed)}"
        fix = f"raise {environment.MAX_SIZE}, or wait: what was used in the last minutes is not evicted"
        yield Finding("over-limit", "warning", root, fact, fix)


def headers(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Torch ignores `TORCHINDUCTOR_CACHE_DIR` for them (2.13.0 `_inductor/codecache.py`, ``_HEADER_DIR``).

    Raises:
        ConfigurationError: there is no temporary directory.
    """
    directory = f"{paths.default_root(environ)}/precompiled_headers"
    if os.path.isdir(directory) and not inside(directory, root):
        taken = strays.size_of(directory) / 1e6
        fact = (
            f"{taken:.0f} MB of torch's precompiled headers, which it keeps here whatever the root"
        )
        fix = f"rm -r {shlex.quote(directory)} while no job runs; set TMPDIR to have them elsewhere"
        yield Finding("headers-elsewhere", "warning", directory, fact, fix)


# ---- locks


def kernel_locks(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Locks whose holder has died, or has shown no sign of life for as long as a waiter waits."""
    stall_s = environment.STALL_TIMEOUT.read_or_default(environ)
    for path in _listed(lock_directory(root)):
        if not path.endswith(".lock") or os.path.basename(path) == "provision.lock":
            continue
        age_s = _age_s(path)
        if age_s is None or age_s <= min(stall_s, strays.STALE_S):
            continue  # a lock in use is not touched
        if not is_free(path):
            if age_s > stall_s:
                fact = f"{holder(path)} holds it, and has given no sign of life for {age_s:.0f} s"
                fix = "if that process hangs, kill it: its death frees the lock"
                yield Finding("lock-stalled", "warning", path, fact, fix)
        elif age_s > strays.STALE_S:
            fact = f"{holder(path)} died with it {age_s / 3600:.0f} h ago; nobody waits for it"
            fix = f"find out why it died (`dmesg`: out of memory?), and rm {shlex.quote(path)}"
            yield Finding("lock-stale", "warning", path, fact, fix)


def provision_lock(root: str) -> Iterator[Finding]:
    """The lock of `provision` is there for good; only to hold it for long is odd."""
    path = f"{lock_directory(root)}/provision.lock"
    since_s = _age_s(f"{path}.holder")
    if since_s is None or since_s <= _PROVISIONING_S or _age_s(path) is None or is_free(path):
        return
    fact = (
        f"{holder(f'{path}.holder')} has held it for {since_s:.0f} s, and nobody else can provision"
    )
    fix = "wait for that process, or stop it: its death frees the lock"
    yield Finding("provision-lock-held", "warning", path, fact, fix)


def _age_s(path: str) -> float | None:
    """How long ago a plain file was written that this user may read; None for any other. Opening a FIFO would wait."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    usable = stat.S_ISREG(found.st_mode) and _may(path, os.R_OK)
    return time.time() - found.st_mtime if usable else None


# ---- times


def clock_skew(root: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the time of a new file with this machine's; not where nothing may be written."""
    try:
        trust, directory = Trust.parse(environ), paths.ours(root, "tmp")
        if not (vet(root, trust) and vet_child(directory, trust)):
            return
        before = time.time()
        # a sweep knows the name, should we be killed
        fd, probe = tempfile.mkstemp(prefix=STAGED, dir=directory)
        try:
            made, after = os.fstat(fd).st_mtime, time.time()
        finally:
            os.close(fd)
            os.unlink(probe)
    except (OSError, GpuCacheError):
        return  # read-only, full, unsafe: other checks tell
    skew_s = max(0.0, made - after) + min(0.0, made - before)
    if abs(skew_s) > _SKEW_S:
        which = "ahead of" if skew_s > 0 else "behind"
        fact = f"the file system's clock is {abs(skew_s):.0f} s {which} this machine's"
        fact += ": what is old looks new, or new old"
        fix = "synchronise the clocks of this machine and of the file server (chronyc tracking, timedatectl)"
        yield Finding("clock-skew", "warning", root, fact, fix)


def future_times(root: str) -> Iterator[Finding]:
    """The record and a few entries: what seems used in the future is never pruned."""
    limit = time.time() + _FUTURE_S
    sample = [paths.record_path(root, paths.host_name()), *islice(_manifests(root), _SAMPLE)]
    late = [path for path in sample if _modified(path) > limit]
    if late:
        ahead_s = max(map(_modified, late)) - time.time()
        fact = f"{len(late)} of {len(sample)} files looked at, such as {late[0]}, "
        fact += f"are up to {ahead_s:.0f} s in the future"
        found = f"find {shlex.quote(paths.ours(root))} -newermt now -type f"
        fix = rf"set the clock right, then {found} \( -name {MANIFEST} -o -path '*/devices/*' \) -exec touch {{}} +"
        yield Finding("future-times", "warning", root, fact, fix)


def _manifests(root: str) -> Iterator[str]:
    for shard in _listed(paths.ours(root, "store")):
        for entry in _listed(shard):
            yield f"{entry}/{MANIFEST}"


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0
