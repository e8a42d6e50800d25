"""What `-o` and `--textfile` write: whole or not at all, and only where the user wants it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucache.cli.output_file import whole_file
from gpucache.errors import ProvisionError


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


@pytest.mark.root
@pytest.mark.parametrize("dangles", [False, True])
def test_through_the_link_of_another_user_in_an_open_directory_nothing_is_written(
    dangles: bool, tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    link = tmp_path / "tmp/cache.html"
    link.symlink_to(tmp_path / "new" if dangles else victim)
    os.lchown(link, 1234, 1234)
    with pytest.raises(ProvisionError, match="Permission denied"), whole_file(str(link)) as file:
        file.write(b"theirs")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_ones_own_link_is_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    link = tmp_path / "tmp/cache.html"
    link.symlink_to(victim)
    with whole_file(str(link)) as file:
        file.write(b"new")
    assert victim.read_text() == "new"
    assert link.is_symlink()


def test_on_a_full_disk_the_error_names_the_file_which_is_as_it_was(tmp_path: Path, mount) -> None:
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "none")
    before = disk / "cache.html"
    before.write_text("mine")
    said = f"could not write {before}: No space left on device"
    with pytest.raises(ProvisionError) as failed, whole_file(str(before)) as file:
        file.write(b"x" * 100_000)
    assert said in str(failed.value)
    assert failed.value.hint.startswith("name another file with --output")
    assert before.read_text() == "mine"
    assert list(disk.iterdir()) == [before]


def test_what_is_no_file_and_takes_nothing_is_named(tmp_path: Path) -> None:
    said = "could not write /dev/full: No space left on device"
    with pytest.raises(ProvisionError, match=said), whole_file("/dev/full") as file:
        file.write(b"x")


def test_an_error_of_what_is_to_be_written_is_no_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as failed, whole_file(str(tmp_path / "f")):
        os.stat(tmp_path / "an entry that has gone")
    assert not isinstance(failed.value, ProvisionError)
    assert not list(tmp_path.iterdir())
