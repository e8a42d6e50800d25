"""What `doctor` asks about other JIT caches: what will hang, what fails at every start, and what was left behind.

Looked at are those in the root, and those whose variable names another directory, as far as their first 100,000 names
and files for a few seconds: `gpucache verify --cache` looks at all.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator

from gpucache import environment
from gpucache.configuration import for_all
from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.disk.files import inside
from gpucache.disk.refusal import may
from gpucache.findings import Finding
from gpucache.layout.jit_caches import JIT_CACHES
from gpucache.report.jit_damage import damages
from gpucache.store.jit_locks import is_baton, is_orphaned
from gpucache.store.jit_units import JitUnit, JitUnits, find, find_in, is_left_behind
from gpucache.units import age, size

_MOST_NAMES = 100_000
_JUDGING_S = 3.0
_ORPHAN_S = 600.0


@tells(
    {
        "jit-hangs": "a JIT compiler waits for ever, without a word, for a lock that it may not take",
        "jit-lock-left": "a killed build has left a lock, for which every later start waits",
        "jit-damaged": "a JIT cache has files that were cut or emptied, and that are never made again",
        "jit-left-behind": "killed writers, as of a full disk, have left unfinished files in a JIT cache",
        "jit-over-limit": "the JIT caches in the root take more than GPUCACHE_JIT_MAX_SIZE allows",
    }
)
def units(case: Case) -> Iterator[Finding]:
    """Warn of what is wrong with the units of other JIT caches. Takes no lock, and renews no access time."""
    root = os.path.realpath(case.root)
    in_root = find(root, JIT_CACHES, most_names=_MOST_NAMES)
    deadline = time.monotonic() + _JUDGING_S
    for found in (*in_root, *_elsewhere(case, root)):
        yield from _hangs(found)
        yield from _left_locks(found)
        yield from _damaged(found, case.root, deadline)
        yield from _left_behind(found, case.root)
    yield from _over_limit(case, in_root)


def _elsewhere(case: Case, root: str) -> Iterator[JitUnits]:
    """The caches whose variable, as it is set, names a directory that is not in the root."""
    for cache in JIT_CACHES:
        directory = case.environ.get(cache.variable or "", "")
        if not directory or not cache.units:
            continue
        directory = os.path.realpath(os.path.expanduser(directory))
        if not inside(directory, root) and os.path.isdir(directory):
            yield find_in(directory, cache, _MOST_NAMES)


def _hangs(found: JitUnits) -> Iterator[Finding]:
    """tvm-ffi takes every error of opening its lock for a lock that is held (0.1.12 and 0.1.15, seen)."""
    if found.cache.name != "tvm-ffi":
        return
    closed = [unit for unit in found.units if not _may_lock(unit)]
    may_add = may(found.directory, os.W_OK | os.X_OK)
    if may_add and not closed:
        return
    subject = found.directory if not may_add else os.path.dirname(closed[0].lock_path or "")
    many = f", and {len(closed)} of its {len(found.units)} modules" if may_add else ""
    fact = (
        f"uid {os.geteuid()} may not write it{many}: tvm-ffi waits there for ever, without a word"
    )
    fix = f"let this user write {shlex.quote(subject)} and what is in it, or set {found.cache.variable} elsewhere"
    yield Finding("jit-hangs", "error", subject, fact, fix)


def _may_lock(unit: JitUnit) -> bool:
    """Whether this user may open the lock of a unit to write, or make it."""
    path = unit.lock_path or unit.path
    if os.path.lexists(path):
        return may(path, os.W_OK)
    return may(os.path.dirname(path), os.W_OK | os.X_OK)


def _left_locks(found: JitUnits) -> Iterator[Finding]:
    """A lock by existence that nobody has open (`store.jit_locks`)."""
    for unit in found.units:
        path = unit.lock_path
        if path is None or unit.kind is None or unit.kind.lock_by != "existence":
            continue
        try:
            lock = os.lstat(path)
        except OSError:
            continue
        is_file = stat.S_ISREG(lock.st_mode)
        if is_file and is_baton(unit, lock) and is_orphaned(lock, unit, _ORPHAN_S):
            unchanged = age(time.time() - lock.st_mtime)
            fact = f"nobody has it open, and nothing was built beside it for {unchanged}: "
            fact += f"every process that loads {os.path.basename(unit.name)} waits for it, without a word"
            fix = f"rm {shlex.quote(path)}, unless a build runs in another container or on another node"
            yield Finding("jit-lock-left", "error", path, fact, fix)


def _damaged(found: JitUnits, root: str, deadline: float) -> Iterator[Finding]:
    count = 0
    first = ""
    judged = 0
    for unit in found.units:
        if time.monotonic() > deadline:
            break
        judged += 1
        for damage in damages(unit):
            if damage.code in ("unit-empty", "unit-cut"):
                first = first or damage.fact
                count += 1
    if not count:
        return
    files = "file is" if count == 1 else "files are"
    so_far = "" if judged == len(found.units) else f" in the first {judged} units"
    fact = f"{count} {files} damaged{so_far}; of the first one: {first}"
    fix = f"gpucache verify --cache {found.cache.name} --repair --root {shlex.quote(root)}"
    if not inside(found.directory, os.path.realpath(root)):
        fix = f"remove what is damaged below {shlex.quote(found.directory)}: it is made again"
    yield Finding("jit-damaged", "error", found.directory, fact, fix)


def _left_behind(found: JitUnits, root: str) -> Iterator[Finding]:
    now = time.time()
    left = [*found.aside, *(one for one in found.staged if is_left_behind(one, now))]
    if not left:
        return
    taken = size(sum(one.physical_bytes for one in left))
    fact = f"{len(left)} unfinished writes, {taken}, such as {os.path.basename(left[0].name)}"
    fix = f"gpucache prune --cache {found.cache.name} --older-than 3650d --root {shlex.quote(root)}"
    if not inside(found.directory, os.path.realpath(root)):
        fix = f"remove them from {shlex.quote(found.directory)}"
    yield Finding("jit-left-behind", "warning", found.directory, fact, fix)


def _over_limit(case: Case, found: list[JitUnits]) -> Iterator[Finding]:
    variable = environment.JIT_MAX_SIZE
    allowed = variable.read_or_default(for_all(case.root, case.environ))
    taken = 0
    for one in found:
        if not one.cache.dear:
            taken += sum(unit.physical_bytes for unit in one.units)
    if allowed and taken > allowed:
        fact = f"other JIT caches take {size(taken)}, and {variable} allows {size(allowed)}"
        fix = "wait: who next compiles a kernel of Triton's looks once an hour; or "
        fix += f"gpucache prune --cache all --max-size {allowed} --root {shlex.quote(case.root)}"
        yield Finding("jit-over-limit", "warning", f"{case.root}/jit", fact, fix)
