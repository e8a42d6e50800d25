"""Which node this process runs on, by the kernel's boot id: what another node has locked cannot be seen from here.

Two containers of one node have one boot id and two host names, and two pods may have one host name. On a file system
that nodes share (NFS with local locks, Lustre, FUSE), ``flock`` may reach the processes of one node only. So names say
which node made them, and what another node has left is judged by its age alone.
"""

from __future__ import annotations

import os
import re
import zlib

from gpucache.layout.paths import host_name

BOOT_ID = "/proc/sys/kernel/random/boot_id"
DAY_S = 86400.0
"""What another node has not changed for so long is taken for a dead process's."""
_LENGTH = 8
_MARK = "@"
"""Stands in a name before the file system of its maker; no host's label has that character."""

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


def mark_of(device: int) -> str:
    """The mark in a name of the file system, by its ``st_dev``, through which a process has locked what it named so."""
    return f"{_MARK}{device:x}"


def is_locked_here(name: str, device: int) -> bool:
    """Whether a lock on what was named so can be seen from here, where it lies on the file system ``device``.

    Each pod of a node may see one bucket by a FUSE mount of its own: such a mount is a file system of its own, of
    another ``st_dev``, and a lock on one of them is not seen on the others. A name without a mark is taken for a name
    of this mount.
    """
    if not is_of_this_node(name):
        return False
    _, mark, rest = name.partition(_MARK)
    return not mark or re.split(r"[.~]", rest, maxsplit=1)[0] == f"{device:x}"
