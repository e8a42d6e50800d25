"""Access-control lists, set as `setfacl` would, which is not on every machine."""

from __future__ import annotations

import os
import struct
from pathlib import Path

USER, GROUP = 0x02, 0x08
"""Tags of entries that name a user, or a group (Linux 6.12 ``include/uapi/linux/posix_acl.h``)."""
_OWNER, _OWN_GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x10, 0x20
_UNDEFINED = 0xFFFFFFFF


def set_access_acl(
    path: Path, *named: tuple[int, int, int], mask: int = 0o7, default: bool = False
) -> None:
    """Let the named (tag, number, permissions) do something with a file or directory.

    Its group gets nothing by the list; ``default`` sets what is inherited by what is made in a directory.
    """
    entries = [(_OWNER, 0o7, _UNDEFINED)]
    entries += sorted((tag, allowed, number) for tag, number, allowed in named if tag == USER)
    entries.append((_OWN_GROUP, 0o7, _UNDEFINED))
    entries += sorted((tag, allowed, number) for tag, number, allowed in named if tag == GROUP)
    entries += [(_MASK, mask, _UNDEFINED), (_OTHERS, 0, _UNDEFINED)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, _name(default), data)


def access_acl(path: Path, default: bool = False) -> bytes | None:
    """The list as it is kept; None where there is none."""
    try:
        return os.getxattr(path, _name(default))
    except OSError:
        return None


def _name(default: bool) -> str:
    return "system.posix_acl_default" if default else "system.posix_acl_access"
