from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuse import same_directory
from support.users import acting_as

from gpucache.disk import default_acl as acl

RAMFS = ("-t", "ramfs", "none")
"""A file system of Linux without ACLs."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory with the mode of a group's, and its descriptor."""
    directory = tmp_path / "directory"
    directory.mkdir()
    directory.chmod(0o2770)
    fd = os.open(directory, os.O_RDONLY)
    yield directory, fd
    os.close(fd)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
def test_what_others_make_below_is_the_groups_whatever_the_umask(opened):
    directory, fd = opened
    assert acl.set_default_acl(fd, 0o770)
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "file").write_text("")
    assert mode(directory / "a") == mode(directory / "a" / "b") == 0o2770
    assert mode(directory / "a" / "b" / "file") == 0o660
    assert acl.has_default_acl(directory / "a" / "b")


def test_without_one_the_umask_counts(opened):
    directory, fd = opened
    assert acl.default_acl(fd) is None
    assert not acl.has_default_acl(fd)
    assert acl.may_have_default_acl(str(directory))


def test_the_trial_leaves_nothing_behind_and_the_directory_as_it_was(opened):
    directory, fd = opened
    before = mode(directory)
    acl.set_default_acl(fd, 0o770)
    assert list(directory.iterdir()) == []
    assert mode(directory) == before


def test_what_is_read_is_what_was_set(opened):
    directory, fd = opened
    for given in (0o770, 0o750, 0o700):
        assert acl.set_default_acl(fd, given)
        assert acl.default_acl(directory) == given
    assert not acl.has_default_acl(directory)


def test_removed_it_counts_no_more_and_need_not_be_there(opened):
    directory, fd = opened
    acl.set_default_acl(fd, 0o770)
    assert acl.remove_default_acl(fd)
    assert not acl.remove_default_acl(fd)
    assert acl.default_acl(directory) is None


def test_one_that_names_a_user_is_no_plain_one(opened):
    """A mode would not tell what that user may."""
    directory, _ = opened
    ids = [(0x01, 7, 2**32 - 1), (0x02, 7, 4242), (0x04, 7, 2**32 - 1), (0x10, 7, 2**32 - 1)]
    data = (2).to_bytes(4, "little")
    for tag, allowed, who in [*ids, (0x20, 0, 2**32 - 1)]:
        data += b"".join(
            number.to_bytes(size, "little") for number, size in ((tag, 2), (allowed, 2), (who, 4))
        )
    os.setxattr(directory, "system.posix_acl_default", data)
    assert acl.default_acl(directory) is None


@pytest.mark.mounts
def test_a_mount_without_acls_says_so(tmp_path, mount):
    point = mount(tmp_path / "disk", *RAMFS)
    fd = os.open(point, os.O_RDONLY)
    try:
        assert acl.set_default_acl(fd, 0o770) is False
        assert not acl.remove_default_acl(fd)
    finally:
        os.close(fd)
    assert acl.default_acl(point) is None
    assert not acl.may_have_default_acl(str(point))
    assert list(point.iterdir()) == []


def test_one_that_is_kept_and_not_followed_is_taken_away_again(opened, monkeypatch):
    """As on a mount that has attributes of any name: the kernel, not the mount, must follow the ACL."""
    directory, fd = opened
    real = os.open

    def open_without(path, *args, **named):
        made = real(path, *args, **named)
        if str(path).startswith("tmp.gpucache-acl-"):
            acl.remove_default_acl(made)
        return made

    monkeypatch.setattr(os, "open", open_without)
    assert acl.set_default_acl(fd, 0o770) is False
    assert acl.default_acl(directory) is None
    assert list(directory.iterdir()) == []


@pytest.mark.fuse
@pytest.mark.usefixtures("fuse", "umask")
def test_a_mount_that_keeps_them_and_takes_the_umask_off_all_the_same_has_none(tmp_path):
    """As bindfs, whatever the umask of who asks: another member's is another."""
    shown = tmp_path / "shown"
    shown.mkdir()
    with same_directory(shown, tmp_path / "point") as point:
        (point / "directory").mkdir()
        (point / "directory").chmod(0o2770)
        fd = os.open(point / "directory", os.O_RDONLY)
        try:
            assert acl.set_default_acl(fd, 0o770) is False
        finally:
            os.close(fd)
        assert acl.default_acl(point / "directory") is None
        assert not acl.may_have_default_acl(f"{point}/directory")
        assert list((point / "directory").iterdir()) == []


@pytest.mark.root
def test_another_users_directory_is_an_error(opened, as_root):
    _, fd = opened
    with acting_as(4242), pytest.raises(PermissionError):
        acl.set_default_acl(fd, 0o770)
