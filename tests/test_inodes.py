from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.trees import randomly, walked

from gpucache.report.inodes import Inode, Inodes, Sum


class Walk:
    """A walk over real files, and what it could not read."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, int | None]] = []
        self.inodes = Inodes(lambda path, error: self.refused.append((path, error.errno)))

    def tree(self, path: Path, total: Sum) -> list[str]:
        seen: list[str] = []
        self.inodes.tree(str(path), self.inodes.disk(str(path)), total, seen.append)
        return seen


@pytest.fixture
def walk() -> Walk:
    return Walk()


@pytest.fixture
def chain(everyones: Path) -> Iterator[Callable[[int, str], Path]]:
    """Directories in each other, and a file in the last; no recursion of Python's gets there."""

    def make(depth: int, name: str) -> Path:
        here = os.open(everyones, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            outer, here = here, os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(outer)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
        return everyones

    yield make
    subprocess.run(["rm", "-rf", everyones], check=True)


class TestTree:
    @pytest.mark.parametrize("seed", range(20))
    def test_sums_are_those_of_an_independent_walk(self, tmp_path, walk, seed):
        randomly(tmp_path, random.Random(seed))
        total = Sum("all")
        seen = walk.tree(tmp_path, total)
        assert (total.files, total.logical, total.physical) == walked(tmp_path)
        assert len(seen) == len(set(seen)) == total.files
        assert walk.refused == []

    @pytest.mark.parametrize("seed", range(5))
    def test_parts_add_up_to_the_whole_whatever_they_share(self, tmp_path, walk, seed):
        randomly(tmp_path, random.Random(seed))
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        for number, path in enumerate(sorted(tmp_path.rglob("*"))):
            if path.is_file() and not path.is_symlink() and number % 2:
                os.link(path, tmp_path / "a" / str(number))
        parts = {
            path: Sum(path.name)
            for path in tmp_path.iterdir()
            if path.is_dir() and not path.is_symlink()
        }
        for path, total in parts.items():
            walk.tree(path, total)
        for path in [path for path in tmp_path.iterdir() if path not in parts]:
            path.unlink()
        expected = walked(tmp_path)
        assert (
            tuple(
                sum(getattr(part, name) for part in parts.values()) for name in ("files", "logical")
            )
            == expected[:2]
        )
        assert sum(part.physical for part in parts.values()) == expected[2]

    def test_a_linked_directory_is_a_file_and_not_followed(self, tmp_path, walk):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "up").symlink_to(tmp_path)
        total = Sum("in")
        assert walk.tree(tmp_path / "in", total) == [f"{tmp_path}/in/up"]
        assert total.logical == len(str(tmp_path))

    def test_no_tree_is_too_deep(self, chain, walk):
        tree, total = chain(1500, "d"), Sum("deep")
        assert len(walk.tree(tree, total)) == total.files == 1
        assert walk.refused == []

    def test_a_path_that_is_too_long_is_told(self, chain, walk):
        walk.tree(chain(30, "d" * 200), Sum("long"))
        ((path, code),) = walk.refused
        assert code == errno.ENAMETOOLONG
        assert len(path) > 4000

    def test_what_is_not_there_counts_nothing(self, tmp_path, walk):
        total = Sum("gone")
        assert walk.tree(tmp_path / "gone", total) == []
        assert (total.files, total.logical, total.physical) == (0, 0, 0)
        assert walk.refused == []
        assert walk.inodes.items(str(tmp_path / "gone")) == []

    def test_what_is_no_directory_is_told(self, tmp_path, walk):
        (tmp_path / "file").write_text("")
        walk.tree(tmp_path / "file", Sum("file"))
        assert walk.inodes.items(str(tmp_path / "file")) == []
        assert walk.refused == [(f"{tmp_path}/file", errno.ENOTDIR)] * 2


class TestContents:
    def test_new_files_are_told_once_each(self, tmp_path, walk):
        total, disk = Sum("all"), walk.inodes.disk(str(tmp_path))
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        (tmp_path / "first" / "a").write_bytes(b"12345")
        os.link(tmp_path / "first" / "a", tmp_path / "first" / "b")
        os.link(tmp_path / "first" / "a", tmp_path / "second" / "a")
        (tmp_path / "second" / "inner").mkdir()
        first = walk.inodes.contents(f"{tmp_path}/first", disk, total)
        second = walk.inodes.contents(f"{tmp_path}/second", disk, total)
        assert first.files.keys() == {"a", "b"}
        assert first.new == [first.files["a"]]
        assert second.files == {"a": first.files["a"]}
        assert second.new == []
        assert second.directories == [f"{tmp_path}/second/inner"]
        assert (total.files, total.logical, total.physical) == (3, 15, 5)

    def test_equal_numbers_on_two_file_systems_are_two_files(self, tmp_path, walk, mount):
        for name in ("one", "two"):
            mount(tmp_path / name, "-t", "tmpfs", "none")
            (tmp_path / name / "file").write_bytes(b"12345")
        assert os.stat(tmp_path / "one/file").st_ino == os.stat(tmp_path / "two/file").st_ino
        total = Sum("all")
        for name in ("one", "two"):
            walk.tree(tmp_path / name, total)
        assert total.physical == total.logical == 10

    def test_a_file_that_vanishes_in_between_is_passed_over(self, tmp_path, walk, monkeypatch):
        """The race is placed where the listing has the name and nobody has asked for the file yet."""
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"12345")

        def init(self, found):
            made(self, found)
            for name in ("a", "b"):
                if os.stat(tmp_path / name).st_ino != self.number:
                    os.unlink(tmp_path / name)

        made = Inode.__init__
        monkeypatch.setattr(Inode, "__init__", init)
        total = Sum("all")
        found = walk.inodes.contents(str(tmp_path), walk.inodes.disk(str(tmp_path)), total)
        assert len(found.files) == len(found.new) == total.files == 1
        assert total.logical == total.physical == 5


class TestInode:
    def test_what_reading_would_wait_for_or_follow_is_not_readable(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to("file")
        (tmp_path / "file").write_bytes(b"12345")
        found = {name: Inode(os.lstat(tmp_path / name)) for name in ("fifo", "link", "file")}
        assert {name: inode.readable(5) for name, inode in found.items()} == {
            "fifo": False,
            "link": False,
            "file": True,
        }
        assert not found["file"].readable(4)
        assert [name for name, inode in found.items() if inode.is_link] == ["link"]
