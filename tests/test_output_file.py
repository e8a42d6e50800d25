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
