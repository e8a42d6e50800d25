"""Where other programs' caches are in a root: in the root itself, or in a directory of this user's own there.

Torch, stock Triton and other JITs know no mode but their umask's. In the root of a group a default ACL makes what they
write the group's (`default_acl`). Where the mount has no ACLs, a member would fail on what another member's torch has
written; so there each has a directory of his own, ``<root>/members/<uid>``, that is to them what the root is elsewhere.
"""

from __future__ import annotations

import os
from contextlib import suppress

from gpucache.disk.vetting import is_groups
from gpucache.layout import paths


def base_of_others(root: str) -> str:
    """The directory that has TorchInductor's and other JITs' caches for this user: the root, or his own in the root.

    Costs one system call for a root that is no group's. Never raises; makes nothing.
    """
    try:
        mode = os.stat(root).st_mode
    except OSError:
        return root
    if not is_groups(mode):
        return root
    # Imported late: most roots are no group's.
    from gpucache.disk.default_acl import has_default_acl
    from gpucache.disk.sharing import mark_of

    if has_default_acl(root):
        return root
    mark = mark_of(root)
    if mark is None or mark.sharing != "group":
        return root
    return paths.member_directory(root, os.geteuid())


def make_base(root: str) -> str | None:
    """Make this user's own directory in a root in which members have own ones; return its path. Else None.

    A link in it leads torch to the root's directories of devices: Triton's kernels are everybody's.

    Raises:
        OSError: the disk refused.
    """
    base = base_of_others(root)
    if base == root:
        return None
    from gpucache.disk.sharing import GROUP, new_directory

    with suppress(FileExistsError):
        new_directory(os.path.dirname(base), GROUP)
    _make_private(base)
    with suppress(FileExistsError):
        os.symlink(os.path.join("..", "..", "triton"), paths.triton_directory(base))
    return base


def _make_private(path: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o700)  # without the bit that gives the group to what is made there
        finally:
            os.close(fd)
