"""What kind of file system a path is on."""

from __future__ import annotations

import os

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
    mounts = _mounts()
    real = os.path.realpath(path)
    holding = [mount for mount in mounts if (real + "/").startswith(mount[0].rstrip("/") + "/")]
    # A later mount may cover a deeper one; btrfs numbers its subvolumes apart from the mount.
    device = _device(real)
    holding = [mount for mount in holding if mount[1] == device] or holding
    # The last mount on the deepest point is the one on top.
    return (
        max(enumerate(holding), key=lambda item: (len(item[1][0]), item[0]))[1][2]
        if holding
        else None
    )


def points() -> list[str]:
    """Where something is mounted; empty where that cannot be told."""
    return [point for point, _, _ in _mounts()]


def _mounts() -> list[tuple[str, str, str]]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            return [_mount(line) for line in lines]
    except OSError:
        return []


def _mount(line: str) -> tuple[str, str, str]:
    """The mount point, the device and the type."""
    before, _, after = line.partition(" - ")
    _, _, device, _, point = before.split(" ")[:5]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point, device, after.split(" ")[0]


def _device(path: str) -> str | None:
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    return f"{os.major(device)}:{os.minor(device)}"


def is_local(path: str) -> bool:
    """Whether only processes of this node can meet at an existing path. Unknown types count as local."""
    kind = file_system(path)
    return kind is None or kind in _LOCAL_FUSE or not (kind in _NETWORK or kind.startswith("fuse"))
