"""What kind of file system a path is on, whether processes of other nodes reach it, and where things are mounted."""

from __future__ import annotations

import os

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

# Types on which processes of several nodes meet, or whose locks may reach one node only.
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "9p",
    "virtiofs",
    "pvfs2",
    "orangefs",
    "wekafs",
    "panfs",
    "vboxsf",
    "gfs2",
    "ocfs2",
    "daos",
    "prl_fs",
}
_LINKING = {
    "btrfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "lustre",
    "nfs",
    "nfs4",
    "overlay",
    "tmpfs",
    "xfs",
    "zfs",
}
"""Types on which a file can have two names."""
_LOCAL_FUSE = {"fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs"}


def file_system(path: str) -> str | None:
    """The type (``ext4``, ``tmpfs``, ``nfs4``) of the mount that holds an existing path; None where unknown.

    `os.statvfs` does not tell the type, so this reads Linux's ``/proc/self/mountinfo``.
    """
    top = _holding(path)
    return None if top is None else top.kind


def point(path: str) -> str | None:
    """The directory on which the file system is mounted that holds an existing path; None where unknown.

    Between two mounts of one file system no file can be linked or renamed, although their device is the same.
    """
    top = _holding(path)
    return None if top is None else top.point


def _holding(path: str) -> _Mount | None:
    real = os.path.realpath(path)
    device = _device(real)
    holding = []
    on_device = []
    for mount in _mounts():
        if mount.holds(real):
            holding.append(mount)
            if mount.device == device:
                on_device.append(mount)
    # A later mount may cover a deeper one, so that those of the path's own device are asked first. There may be none:
    # btrfs numbers its subvolumes apart from the mount.
    return _top_of(on_device or holding)


def _top_of(mounts: list[_Mount]) -> _Mount | None:
    """The mount that lies on top, of mounts in the order in which they were made: the last one on the deepest point."""
    top = None
    deepest = 0
    for mount in mounts:
        depth = len(mount.point)
        if depth >= deepest:
            top = mount
            deepest = depth
    return top


def points() -> list[str]:
    """The directories on which something is mounted; none where that cannot be told."""
    return [mount.point for mount in _mounts()]


def below(directories: Collection[str]) -> list[str]:
    """The mount points below some directories, which are real paths."""
    found = []
    for point in points():
        if any(point.startswith(f"{directory}/") for directory in directories):
            found.append(point)
    return found


class _Mount(Value):
    point: str
    """The directory on which the file system is mounted."""
    device: str
    """``major:minor``."""
    kind: str
    """The type of its file system."""

    def holds(self, path: str) -> bool:
        """Whether a path is, or is below, the mount point."""
        below = self.point.rstrip("/") + "/"
        return f"{path}/".startswith(below)


def _mounts() -> list[_Mount]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            return [_parse_mount(line) for line in lines]
    except OSError:
        return []


_CODES = {
    "\\040": " ",
    "\\011": "\t",
    "\\012": "\n",
    "\\134": "\\",  # last: what it gives is no beginning of another code
}
"""The characters of a path that ``mountinfo`` writes as octal codes."""


def _parse_mount(line: str) -> _Mount:
    """Read a line of ``mountinfo`` (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    fields = before.split(" ")
    device, point = fields[2], fields[4]
    for code, character in _CODES.items():
        point = point.replace(code, character)
    kind = after.split(" ")[0]
    return _Mount(point, device, kind)


def _device(path: str) -> str | None:
    """The device of a path's file system, as `_Mount.device`; None where the path does not answer."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


def is_local(path: str) -> bool:
    """Whether only processes of this node reach an existing path. A file system of unknown type counts as local."""
    kind = file_system(path)
    if kind is None or kind in _LOCAL_FUSE:
        return True
    return kind not in _NETWORK and not kind.startswith("fuse")


def links(path: str) -> bool:
    """Whether files on the mount of an existing path can have two names, as far as the name of its type tells."""
    return file_system(path) in _LINKING
