"""`limit_memory`: how much more memory this process may take than it had."""

from __future__ import annotations

import re
import resource
from contextlib import suppress

_MEMORY_BYTES = 128 * 2**20
"""How much more than at its start this process may take, beside what it is to put."""

_at_start = 0


def limit_memory(more_bytes: int = 0) -> None:
    """Let this process take no more memory than such requests need.

    Beyond that Python raises `MemoryError`, and opendal aborts the process.
    """
    global _at_start
    with suppress(OSError, ValueError):
        if not _at_start:
            _at_start = _private_bytes()
        soft = _at_start + _MEMORY_BYTES + more_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """What counts to the limit: the private memory that this process can write (`getrlimit(2)`)."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"^VmData:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise ValueError("no VmData")
    return 1024 * int(found.group(1))
