"""What is done through a `Straight` is done in the directory that was looked at, whatever its path leads to by then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gpucache.disk import within
from gpucache.disk.within import Straight


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two directories with one file each."""
    for name in ("inside", "outside"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/file").write_text(name)
    return tmp_path


def acts(disk: Straight, directory: Path) -> dict[str, Callable[[], object]]:
    """Everything that can be done to ``file`` and to names beside it."""
    file, beside = f"{directory}/file", f"{directory}/beside"

    def listed() -> None:
        with disk.directory(str(directory)) as fd:
            os.listdir(fd)

    return {
        "lstat": lambda: disk.lstat(file),
        "listdir": lambda: disk.listdir(str(directory)),
        "directory": listed,
        "mkdir": lambda: disk.mkdir(beside),
        "link": lambda: disk.link(file, beside),
        "rename": lambda: disk.rename(file, beside),
        "rename from elsewhere": lambda: disk.rename(f"{directory}/../other", beside),
        "unlink": lambda: disk.unlink(file),
        "rmdir": lambda: disk.rmdir(beside),
    }


NAMES = sorted(acts(Straight(), Path("/nowhere")))


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("linked", ["inside", "inside/deep"])
def test_nothing_is_done_behind_a_link_and_the_error_names_the_link(base, disk, what, linked):
    (base / "inside/other").touch()
    (base / linked).rename(base / "moved")
    (base / linked).symlink_to(base / linked.replace("inside", "outside"))
    before = sorted(map(str, base.rglob("*")))
    with pytest.raises(OSError) as caught:
        acts(disk, base / "inside/deep")[what]()
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert str(caught.value.filename).startswith(str(base / "inside"))
    assert sorted(map(str, base.rglob("*"))) == before


@pytest.mark.parametrize("what", [name for name in NAMES if name not in ("listdir", "directory")])
def test_an_act_stays_in_the_directory_that_was_opened_for_it(base, disk, monkeypatch, what):
    """Its path leads elsewhere by the time of the system call."""
    step, directory = within._step, base / "inside/deep"
    (base / "inside/other").touch()
    if what == "rmdir":
        (directory / "beside").mkdir()

    def swapping(fd: int, name: str, path: str) -> int:
        opened = step(fd, name, path)
        if path == str(directory) and not (base / "moved").exists():
            directory.rename(base / "moved")
            directory.symlink_to(base / "outside/deep")
        return opened

    monkeypatch.setattr(within, "_step", swapping)
    with suppress(OSError):  # a second path is walked anew
        acts(disk, directory)[what]()
    assert os.listdir(base / "outside/deep") == ["file"]
    assert (base / "outside/deep/file").read_text() == "outside"


def test_it_does_what_os_does(base, disk):
    directory = base / "inside/deep"
    disk.mkdir(f"{directory}/made")
    assert (directory / "made").stat().st_mode & 0o777 == 0o700
    disk.link(f"{directory}/file", f"{directory}/made/linked")
    disk.rename(f"{directory}/made/linked", f"{base}/outside/renamed")
    disk.rename(f"{directory}/file", f"{directory}/other")
    assert (base / "outside/renamed").samefile(directory / "other")
    disk.unlink(f"{directory}/other")
    disk.rmdir(f"{directory}/made")
    assert disk.listdir(str(directory)) == []
    assert disk.lexists(str(directory))
    assert not disk.lexists(f"{directory}/other")


def test_the_last_part_of_a_path_may_be_a_link_which_is_not_followed(base, disk):
    (base / "inside/link").symlink_to("deep")
    assert disk.lstat(f"{base}/inside/link").st_ino == (base / "inside/link").lstat().st_ino
    disk.rename(f"{base}/inside/link", f"{base}/inside/renamed")
    disk.unlink(f"{base}/inside/renamed")
    assert (base / "inside/deep/file").exists()


@pytest.mark.parametrize("path", ["/", "/tmp", "/usr/bin"])
def test_paths_near_the_top_are_fine(disk, path):
    assert os.path.samestat(disk.lstat(path), os.lstat(path))


def test_an_error_names_the_whole_path(base, disk):
    for path in (f"{base}/absent", f"{base}/absent/deeper/file"):
        with pytest.raises(FileNotFoundError) as caught:
            disk.unlink(path)
        assert path.startswith(caught.value.filename)
        assert caught.value.filename.endswith("absent")


def test_however_many_directories_it_has_seen_few_are_open(tmp_path, disk):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        path = tmp_path / str(number) / "deep"
        path.mkdir(parents=True)
        disk.mkdir(f"{path}/made")
        disk.rename(f"{path}/made", f"{tmp_path}/0/deep/{number}")
    assert len(os.listdir(tmp_path / "0/deep")) == 300
    assert len(os.listdir("/proc/self/fd")) - before < 100
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before


class TestHeld:
    def test_it_leads_to_the_directory_that_was_there(self, base, disk):
        """For whoever makes files by path."""
        directory = base / "inside/deep"
        with disk.held(str(directory)) as path:
            directory.rename(base / "moved")
            directory.symlink_to(base / "outside/deep")
            Path(path, "made").touch()
            os.link(f"{path}/file", f"{path}/linked")
            os.rename(f"{path}/file", f"{path}/renamed")
        assert sorted(os.listdir(base / "moved")) == ["linked", "made", "renamed"]
        assert os.listdir(base / "outside/deep") == ["file"]

    def test_an_error_names_the_directory_as_people_know_it(self, base, disk):
        directory = f"{base}/inside/deep"
        with pytest.raises(FileNotFoundError) as caught, disk.held(directory) as path:
            os.unlink(f"{path}/absent")
        assert caught.value.filename == f"{directory}/absent"

    def test_without_proc_it_is_the_path_itself(self, base, disk, monkeypatch):
        isdir = os.path.isdir
        monkeypatch.setattr(os.path, "isdir", lambda path: "/proc" not in path and isdir(path))
        with disk.held(f"{base}/inside") as path:
            assert path == f"{base}/inside"
