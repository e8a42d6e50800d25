from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucache.disk import mounts

Mount = Callable[..., Path]


TMPFS = ("-t", "tmpfs", "-o", "size=64k", "none")


@pytest.mark.root
class TestRealMounts:
    def test_a_tmpfs_is_known_by_name_and_is_local(self, tmp_path, mount):
        point = mount(tmp_path / "disk", *TMPFS)
        assert mounts.file_system(str(point)) == "tmpfs"
        assert mounts.is_local(str(point))

    def test_a_path_below_is_on_the_same_file_system(self, tmp_path, mount):
        below = mount(tmp_path / "disk", *TMPFS) / "a" / "b"
        below.mkdir(parents=True)
        assert mounts.file_system(str(below)) == "tmpfs"

    def test_a_neighbour_whose_name_begins_alike_is_not(self, tmp_path, mount):
        mount(tmp_path / "disk", *TMPFS)
        neighbour = tmp_path / "disk2"
        neighbour.mkdir()
        assert mounts.file_system(str(neighbour)) == mounts.file_system(str(tmp_path))

    def test_the_deepest_mount_holds_the_path(self, tmp_path, mount):
        outer = mount(tmp_path / "disk", *TMPFS)
        inner = mount(outer / "proc", "-t", "proc", "none")
        assert mounts.file_system(str(inner)) == "proc"
        assert mounts.file_system(str(outer)) == "tmpfs"

    def test_of_two_mounts_on_one_point_the_last_is_seen(self, tmp_path, mount):
        mount(tmp_path / "point", *TMPFS)
        assert mounts.file_system(str(tmp_path / "point")) == "tmpfs"
        mount(tmp_path / "point", "-t", "proc", "none")
        assert mounts.file_system(str(tmp_path / "point")) == "proc"

    def test_a_mount_covered_by_a_later_one_above_it_does_not_count(self, tmp_path, mount):
        mount(tmp_path / "point" / "below", "-t", "proc", "none")
        below = mount(tmp_path / "point", *TMPFS) / "below"
        below.mkdir()
        assert mounts.file_system(str(below)) == "tmpfs"

    def test_a_bind_mount_is_what_it_shows(self, tmp_path, mount):
        shown = mount(tmp_path / "disk", *TMPFS) / "shown"
        shown.mkdir()
        elsewhere = mount(tmp_path / "elsewhere", "--bind", str(shown))
        assert mounts.file_system(str(elsewhere)) == "tmpfs"

    def test_a_link_is_followed(self, tmp_path, mount):
        point = mount(tmp_path / "disk", *TMPFS)
        link = tmp_path / "link"
        link.symlink_to(point)
        assert mounts.file_system(str(link)) == "tmpfs"

    @pytest.mark.parametrize(
        "name",
        [
            "with space",
            "tab\there",
            "line\nbreak",
            "back\\slash",
            "back\\040slash",
            " - ",
            "ünïcode",
            "#1",
        ],
        ids=repr,
    )
    def test_the_name_of_the_mount_point_may_be_odd(self, name, tmp_path, mount):
        point = mount(tmp_path / name, *TMPFS)
        assert mounts.file_system(str(point)) == "tmpfs"

    def test_the_name_need_not_be_text(self, tmp_path, mount):
        point = mount(tmp_path / os.fsdecode(b"latin-\xe9"), *TMPFS)
        assert mounts.file_system(str(point)) == "tmpfs"


@pytest.fixture
def mountinfo(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put another kernel's answer in front: nobody can mount a Lustre here."""

    def put(lines: str) -> None:
        root = "27 1 0:999998 / / rw,relatime - ext4 /dev/vda rw\n"
        monkeypatch.setattr(
            mounts, "open", lambda *_, **__: io.StringIO(root + lines), raising=False
        )

    return put


@pytest.mark.parametrize(
    ("line", "kind", "local"),
    [
        (
            "60 27 0:52 / /data rw,nosuid shared:31 - nfs4 10.0.0.7:/export/data rw,vers=4.2",
            "nfs4",
            False,
        ),
        ("60 27 0:52 / /data rw - nfs filer:/vol/data rw,vers=3", "nfs", False),
        (
            "60 27 0:52 / /data rw,flock - lustre 10.0.0.1@o2ib:10.0.0.2@o2ib:/lfs rw,flock",
            "lustre",
            False,
        ),
        ("60 27 0:52 / /data rw - gpfs gpfs0 rw", "gpfs", False),
        ("60 27 0:52 / /data rw - ceph 10.0.0.1:6789:/ rw", "ceph", False),
        ("60 27 0:52 / /data rw - 9p drvfs rw", "9p", False),
        ("60 27 0:52 / /data rw - cifs //filer/data rw", "cifs", False),
        (
            "60 27 0:52 / /data rw shared:9 master:3 - fuse.sshfs ada@host: rw,user_id=0",
            "fuse.sshfs",
            False,
        ),
        ("60 27 0:52 / /data rw - fuse.juicefs JuiceFS:x rw", "fuse.juicefs", False),
        ("60 27 0:52 / /data rw - fuse something rw", "fuse", False),
        ("60 27 0:52 / /data rw - fuseblk /dev/sdb1 rw", "fuseblk", True),
        (
            "60 27 0:52 / /data rw - fuse.fuse-overlayfs fuse-overlayfs rw",
            "fuse.fuse-overlayfs",
            True,
        ),
        ("60 27 0:52 / /data rw - overlay overlay rw,lowerdir=/a", "overlay", True),
        ("60 27 0:52 / /data rw - xfs /dev/nvme0n1 rw", "xfs", True),
        ("60 27 0:52 / /data rw - of-next-year /dev/x rw", "of-next-year", True),
        ("60 27 0:52 / /other rw - nfs4 filer:/x rw", "ext4", True),
    ],
)
def test_types_on_which_nodes_meet_are_not_local(line, kind, local, mountinfo):
    """Lines of `/proc/self/mountinfo`, with none, one and two optional fields."""
    mountinfo(line + "\n")
    assert mounts.file_system("/data/cache") == kind
    assert mounts.is_local("/data/cache") is local


def test_a_local_disk_mounted_inside_a_network_file_system_is_local(mountinfo):
    mountinfo(
        "60 27 0:52 / /home rw - nfs4 filer:/home rw\n61 60 8:1 / /home/ada/scratch rw - xfs /dev/sda1 rw\n"
    )
    assert not mounts.is_local("/home/ada")
    assert mounts.is_local("/home/ada/scratch/cache")


def test_a_file_system_that_numbers_its_parts_otherwise_is_found_by_its_mount_point(
    mountinfo, tmp_path
):
    """A btrfs subvolume has another device number than its mount."""
    mountinfo(f"60 27 0:999999 /sub {tmp_path} rw - btrfs /dev/sda1 rw,subvol=/sub\n")
    assert mounts.file_system(str(tmp_path)) == "btrfs"


def test_where_the_kernel_does_not_say_everything_counts_as_local(monkeypatch):
    """Another operating system, or no /proc."""

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(mounts, "open", missing, raising=False)
    assert mounts.file_system("/") is None
    assert mounts.is_local("/")


def test_a_chroot_whose_root_is_no_mount_point_counts_as_local(monkeypatch):
    lines = "60 27 0:52 / /proc rw - proc proc rw\n"
    monkeypatch.setattr(mounts, "open", lambda *_, **__: io.StringIO(lines), raising=False)
    assert mounts.file_system("/srv") is None
    assert mounts.is_local("/srv")
