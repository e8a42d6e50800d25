"""What `doctor` asks about times: those of the disk's clock, and those that files have.

No other check writes anything: `clock_skew` makes a file for an instant.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from itertools import islice

from gpucache.diagnosis.case import Case
from gpucache.diagnosis.codes import tells
from gpucache.diagnosis.looking import listed
from gpucache.disk.files import STAGED
from gpucache.disk.vetting import Trust, vet, vet_child
from gpucache.errors import GpuCacheError
from gpucache.findings import Finding
from gpucache.layout import paths
from gpucache.store.manifest import MANIFEST
from gpucache.store.recency import SKEW_S

_FUTURE_S = 60.0
_SAMPLE = 64


@tells({"clock-skew": "the file system's clock is not this machine's"})
def clock_skew(case: Case) -> Iterator[Finding]:
    """Compare the time of a new file with this machine's clock, unless no file may be made there."""
    try:
        skew_s = _skew_s(case.root, Trust.parse(case.environ).in_root(case.root))
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
    for shard in listed(paths.ours(root, "store")):
        for entry in listed(shard):
            yield f"{entry}/{MANIFEST}"


def _modified(path: str) -> float:
    """When a file was written last; 0 for a file that is not there."""
    try:
        return os.stat(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0
