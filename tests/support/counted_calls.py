"""The libc calls that the injection library counts, beside the system calls that strace sees."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from support.faults import Sweep

# What changes the disk or a lock: as the library and the kernel both call it, and as each alone does.
_COMMON = {
    "rename": "rename",
    "renameat": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "write": "write",
    "pwrite64": "write",
    "flock": "flock",
    "utimensat": "utime",
    "chmod": "chmod",
    "fchmod": "chmod",
    "fsync": "sync",
}
_KINDS = {
    **_COMMON,
    "ftruncate64": "truncate",
    "futimens": "utime",
    "open64": "open",
    "openat64": "open",
    "opendir": "open",
}
_SYSTEM_CALLS = {
    **_COMMON,
    "renameat2": "rename",
    "symlinkat": "link",
    "ftruncate": "truncate",
    "fchmodat": "chmod",
    "open": "open",
    "openat": "open",
}


def counted_twice(
    sweep: Sweep, operation: str, strace: str, trace: Path
) -> tuple[Counter[str], Counter[str]]:
    """The calls of an operation that change something, by kind: as the library and as strace counts them."""
    only = "trace=" + ",".join(f"?{name}" for name in _SYSTEM_CALLS)
    ours, kernels = sweep.traced(operation, strace, only, trace)
    names = [line.split()[0] for line in ours.splitlines()]
    begun = [re.match(r"\d+ +(\w+)\(", line) for line in kernels.splitlines()]
    return (
        Counter(_KINDS[name] for name in names if name in _KINDS),
        Counter(_SYSTEM_CALLS[match[1]] for match in begun if match is not None),
    )
