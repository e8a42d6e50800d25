"""Which node this process runs on, by the kernel's boot id: what another node has locked cannot be seen from here.

Two containers of one node have one boot id and two host names, and two pods may have one host name. On a file system
that nodes share (NFS with local locks, Lustre, FUSE), ``flock`` may reach the processes of one node only. So names say
which node made them, and what another node has left is judged by its age alone.
"""

from __future__ import annotations

import os
import zlib

from gpucache.layout.paths import host_name

BOOT_ID = "/proc/sys/kernel/random/boot_id"
DAY_S = 86400.0
"""What another node has not changed for so long is taken for a dead process's."""
_LENGTH = 8

_known: str | None = None


def node_id() -> str:
    """Eight hexadecimal digits that all processes of this node have, until it is started again, and no other node.

    They are the first of Linux's boot id; elsewhere a checksum of the host's name.
    """
    global _known
    if _known is None:
        _known = _read()
    return _known


def _read() -> str:
    try:
        with open(BOOT_ID, encoding="utf-8") as file:
            digits = file.read(_LENGTH)
        int(digits, 16)
        return digits
    except (OSError, ValueError):
        checksum = zlib.crc32(os.fsencode(host_name()))
        return f"{checksum:08x}"


def is_of_this_node(name: str) -> bool:
    """Whether a name begins with this node's id and a dot."""
    return name.startswith(f"{node_id()}.")
