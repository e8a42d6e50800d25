"""The libc calls that the injection library counts, beside the system calls that strace sees."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from support.faults import Sweep

# What changes the disk or a lock: as the library calls it, and as the kernel does.
_KINDS = {
    "rename": "rename",
    "renameat": "rename",
    "link": "link",
    "linkat": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "write": "write",
    "pwrite64": "write",
    "flock": "flock",
    "ftruncate64": "truncate",
    "utimensat": "utime",
    "futimens": "utime",
    "chmod": "chmod",
    "fchmod": "chmod",
    "fsync": "sync",
    "symlink": "link",
    "open64": "open",
    "openat64": "open",
    "opendir": "open",
}
_SYSTEM_CALLS = {
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "link",
    "symlinkat": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "write": "write",
    "pwrite64": "write",
    "flock": "flock",
    "ftruncate": "truncate",
    "utimensat": "utime",
    "chmod": "chmod",
    "fchmod": "chmod",
    "fchmodat": "chmod",
    "fsync": "sync",
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
