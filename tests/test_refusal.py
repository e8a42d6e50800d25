"""Each cause for which the operating system refuses has a way out of its own, which works."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess

import pytest
from support.users import ADA, BOB, acting_as, directory

from gpucache.disk.files import make_directory, make_root, write_whole
from gpucache.disk.refusal import refusal
from gpucache.disk.vetting import Trust, vet
from gpucache.errors import ProvisionError

CAUSES = [
    "EROFS",
    "ENOSPC",
    "EDQUOT",
    "ENAMETOOLONG",
    "ELOOP",
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "ENOTDIR",
    "EEXIST",
    "EIO",
    "ESTALE",
]


def of(name: str, path: str = "/root/x") -> ProvisionError:
    number = getattr(errno, name)
    return refusal(path, OSError(number, os.strerror(number)))


def test_no_two_causes_have_one_way_out():
    hints = {of(name).hint for name in CAUSES}
    assert len(hints) == len(CAUSES)
    assert of("EINVAL").hint not in hints


@pytest.mark.parametrize("path", ["x/y/z", "x", "", "/", "/no/such/place"])
def test_any_path_can_be_refused(path):
    for name in ("ENOENT", "EACCES", "EPERM", "EIO"):
        assert of(name, path).errno == getattr(errno, name)


def test_a_name_that_is_too_long_wants_a_shorter_path(tmp_path):
    with pytest.raises(
        ProvisionError, match="File name too long; choose a root with a shorter path"
    ):
        make_root(f"{tmp_path}/{'x' * 300}")


def test_links_in_a_circle_are_to_be_looked_at(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ProvisionError, match="could not make .*links on the way lead in a circle"):
        make_root(f"{tmp_path}/a/root")
    with pytest.raises(
        ProvisionError, match="could not look at .*links on the way lead in a circle"
    ):
        vet(f"{tmp_path}/a/root", Trust())


def test_a_file_on_the_way_is_to_be_moved_away(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ProvisionError, match="Not a directory; something on the way is no directory"
    ):
        make_root(f"{tmp_path}/file/root")


def test_too_many_open_files_want_a_higher_limit(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    write_whole(f"{tmp_path}/before", b"", str(tmp_path))  # everything is imported
    taken = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))
    try:
        with pytest.raises(ProvisionError) as caught:
            write_whole(f"{tmp_path}/file", b"", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)
    assert str(caught.value).endswith(
        "Too many open files; this process may open no more files: raise its limit (`ulimit -n`)"
    )


def test_a_missing_mount_point_is_named_with_the_command_that_makes_the_rest(tmp_path):
    with pytest.raises(ProvisionError) as caught:
        make_root(f"{tmp_path}/scratch/my kernels/root")
    assert caught.value.hint.startswith(
        f"{tmp_path}/scratch is not there: mount it, or `mkdir -p '{tmp_path}/scratch/my kernels'`"
    )
    subprocess.run(caught.value.hint.split("`")[1], shell=True, check=True)
    assert make_root(f"{tmp_path}/scratch/my kernels/root")


def test_a_link_to_a_missing_mount_point_is_told_as_such(tmp_path):
    (tmp_path / "scratch").symlink_to(tmp_path / "mount")
    with pytest.raises(ProvisionError) as caught:
        make_root(f"{tmp_path}/scratch/kernels/root")
    assert caught.value.hint.startswith(
        f"{tmp_path}/scratch is a link to {tmp_path}/mount, which is not there: mount it"
    )
    subprocess.run(caught.value.hint.split("`")[1], shell=True, check=True)
    assert make_root(f"{tmp_path}/scratch/kernels/root")


def test_a_directory_that_is_there_is_not_called_missing():
    """What makes no name, and says that it has none."""
    with pytest.raises(ProvisionError) as caught:
        make_root("/proc/root-of-mine")
    assert caught.value.errno == errno.ENOENT
    assert "not there" not in caught.value.hint
    assert "choose a root" in caught.value.hint


@pytest.mark.root
class TestPermission:
    @pytest.mark.parametrize("mode", [0o500, 0o400, 0o000])
    @pytest.mark.parametrize("below", ["root", "root/gpucache/v1"])
    def test_the_directory_in_the_way_is_named_with_the_command_that_opens_it(
        self, everyones, below, mode
    ):
        closed = directory(everyones / "it's closed", mode, ADA)
        with acting_as(ADA), pytest.raises(ProvisionError) as caught:
            make_directory(f"{closed}/{below}")
        assert "Permission denied" in caught.value.problem
        command = caught.value.hint.split("`")[1]
        assert caught.value.hint.endswith(f"which has mode {mode:04o}")
        with acting_as(ADA):
            subprocess.run(command, shell=True, check=True)
            assert make_directory(f"{closed}/{below}")
        assert stat.S_IMODE(closed.stat().st_mode) & 0o700 == 0o700

    def test_another_users_directory_is_not_to_be_opened_by_this_one(self, everyones):
        theirs = directory(everyones / "bob", 0o755, BOB)
        with acting_as(ADA), pytest.raises(ProvisionError) as caught:
            make_root(f"{theirs}/root")
        assert caught.value.hint.startswith(
            f"{theirs} belongs to uid {BOB} (mode 0755) and not to uid {ADA}: set GPUCACHE_DIR to a"
        )

    def test_what_cannot_be_looked_at_is_not_said_to_be_made(self, everyones):
        closed = directory(everyones / "closed", 0o000, ADA)
        (closed / "root").mkdir()
        with acting_as(ADA), pytest.raises(ProvisionError) as caught:
            vet(f"{closed}/root", Trust())
        assert caught.value.problem == f"could not look at {closed}/root: Permission denied"
        assert caught.value.hint == f"`chmod u+rwx {closed}`, which has mode 0000"
