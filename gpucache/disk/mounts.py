"""What kind of file system a path is on."""

from __future__ import annotations

import os

from gpucache.values import Value

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
_LOCAL_FUSE = {"fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs"}


def file_system(path: str) -> str | None:
    """The type (``ext4``, ``tmpfs``, ``nfs4``) of the mount that holds an existing path; None where unknown.

    `os.statvfs` does not tell the type, so this reads Linux's ``/proc/self/mountinfo``.
    """
    real = os.path.realpath(path)
    device = _device(real)
    holding = [mount for mount in _mounts() if mount.holds(real)]
    # A later mount may cover a deeper one; btrfs numbers its subvolumes apart from the mount.
    on_device = [mount for mount in holding if mount.device == device]
    best: _Mount | None = None
    for mount in on_device or holding:
        # The last mount on the deepest point is the one on top.
        if best is None or len(mount.point) >= len(best.point):
            best = mount
    return None if best is None else best.kind


def points() -> list[str]:
    """Where something is mounted; empty where that cannot be told."""
    return [mount.point for mount in _mounts()]


class _Mount(Value):
    point: str
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


def _parse_mount(line: str) -> _Mount:
    """A line of ``mountinfo`` (proc_pid_mountinfo(5)), which writes four characters of a path as octal codes."""
    before, _, after = line.partition(" - ")
    _, _, device, _, point = before.split(" ")[:5]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    kind = after.split(" ")[0]
    return _Mount(point, device, kind)


def _device(path: str) -> str | None:
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


def is_local(path: str) -> bool:
    """Whether only processes of this node can meet at an existing path. Unknown types count as local."""
    kind = file_system(path)
    if kind is None or kind in _LOCAL_FUSE:
        return True
    return kind not in _NETWORK and not kind.startswith("fuse")
