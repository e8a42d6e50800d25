from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.recipes import recipe

from gpucache.kernels import recipe_lines
from gpucache.kernels.recipe import MOST_BYTES, to_text
from gpucache.kernels.recipe_lines import (
    FORMAT_LINE,
    BadLine,
    BadRecipeFile,
    append,
    read_recipe_file,
)

A, B = recipe(key="A" * 52), recipe(key="B" * 52)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "recipes"


def line(one):
    return to_text(one) + b"\n"


def read(file, *content):
    file.write_bytes(b"".join(content))
    return list(read_recipe_file(str(file)))


def test_the_recipes_of_several_ranks_are_read_once_each(file):
    assert read(file, FORMAT_LINE, line(A), FORMAT_LINE, line(B), line(A)) == [A, B]


def test_a_torn_line_spoils_no_other_line(file):
    found = read(file, FORMAT_LINE, line(A)[:50], b"\n", line(B), line(A)[:70])
    assert found[0] == BadLine(2, "it is no JSON")
    assert found[1] == B
    assert found[2] == BadLine(4, "the line is torn: it is no JSON")


def test_a_line_that_is_too_long_is_told_and_passed_over(file):
    found = read(file, FORMAT_LINE, b"x" * (3 * MOST_BYTES), b"\n", line(B))
    assert found == [BadLine(2, f"more than {MOST_BYTES} bytes"), B]


def test_a_recipe_of_just_the_greatest_length_is_read(file):
    empty = recipe(source="")
    full = recipe(source="x" * (MOST_BYTES - len(to_text(empty))))
    assert len(to_text(full)) == MOST_BYTES
    assert read(file, FORMAT_LINE, line(full)) == [full]


@pytest.mark.parametrize(
    "content",
    [
        line(A),
        b"\x7fELF",
        b'{"format": "gpucache recipes", "version": 2}\n',
        b'{"format": "gpucache recipes", "version": true}\n',
        b'{"format": "another", "version": 1}\n',
        b'{"format": "gpucache rec',
        FORMAT_LINE + b'{"format": "gpucache recipes", "version": 2}\n',
    ],
    ids=lambda content: repr(content[-20:]),
)
def test_a_file_of_another_format_is_refused_and_named(file, content):
    with pytest.raises(BadRecipeFile) as error:
        read(file, content)
    assert error.value.path == str(file)
    assert error.value.hint


def test_an_empty_file_has_no_recipes(file):
    assert read(file) == []


def test_a_file_that_is_too_long_is_not_read(file, monkeypatch):
    with open(file, "wb") as sparse:
        sparse.truncate(recipe_lines.MOST_FILE_BYTES + 1)
    with pytest.raises(BadRecipeFile, match="MiB"):
        list(read_recipe_file(str(file)))


def test_a_fifo_hangs_nobody(file):
    os.mkfifo(file)
    with pytest.raises(OSError, match="regular"):
        list(read_recipe_file(str(file)))


def test_a_link_is_not_followed(file, tmp_path):
    (tmp_path / "other").write_bytes(FORMAT_LINE)
    file.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        list(read_recipe_file(str(file)))


# ---- writing


def test_a_file_that_is_made_is_the_owners_alone(file):
    append(str(file), to_text(A))
    append(str(file), to_text(B))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes() == FORMAT_LINE + line(A) + line(B)


def test_writers_at_once_spoil_no_line(file):
    recipes = [recipe(key=f"{number:052}", source="x" * 5000) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: append(str(file), to_text(one)), recipes))
    assert sorted(read_recipe_file(str(file))) == recipes


def test_whoever_writes_after_a_torn_line_ends_it(file):
    file.write_bytes(FORMAT_LINE + line(A)[:100])
    append(str(file), to_text(B))
    assert list(read_recipe_file(str(file))) == [BadLine(2, "it is no JSON"), B]


def test_a_full_disk_tears_one_line_at_most(file, monkeypatch):
    """The disk takes a part of a line, and nothing of the end of it."""
    append(str(file), to_text(A))
    room = [100]

    def write(fd, data, real=os.write):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        with pytest.raises(OSError, match="part of the line"):
            append(str(file), to_text(B))
    append(str(file), to_text(B))
    first, torn, second = read_recipe_file(str(file))
    assert (first, torn.number, second) == (A, 3, B)


@pytest.mark.mounts
@pytest.mark.root
def test_on_a_disk_that_is_full_for_a_while_the_lines_before_and_after_are_read(mount, tmp_path):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none")
    filler, file = disk / "filler", str(disk / "recipes")
    filler.write_bytes(bytes(40_000))
    recipes = [recipe(key=f"{number:052}", source="x" * 5000) for number in range(9)]
    written = []
    for one in recipes:
        try:
            append(file, to_text(one))
        except OSError:
            filler.unlink(missing_ok=True)
        else:
            written.append(one)
    found = list(read_recipe_file(file))
    assert len(written) == 8
    assert [one for one in found if not isinstance(one, BadLine)] == written
    assert len(found) <= 9


@pytest.mark.parametrize("content", [b"import torch\n", b"{}", line(A)])
def test_a_file_that_is_none_of_recipes_is_left_alone(file, content):
    file.write_bytes(content)
    with pytest.raises(BadRecipeFile) as error:
        append(str(file), to_text(A))
    assert "another file" in error.value.hint
    assert file.read_bytes() == content


def test_a_fifo_a_directory_and_a_link_are_refused_at_once(file, tmp_path):
    os.mkfifo(file)
    with pytest.raises(BadRecipeFile, match="regular"):
        append(str(file), to_text(A))
    with pytest.raises(IsADirectoryError):
        append(str(tmp_path), to_text(A))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        append(str(link), to_text(A))
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_of_another_user_is_refused(file, monkeypatch):
    file.write_bytes(FORMAT_LINE)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(BadRecipeFile, match="user"):
        append(str(file), to_text(A))


def test_a_file_that_no_reader_would_take_does_not_grow(file):
    with open(file, "wb") as sparse:
        sparse.write(FORMAT_LINE)
        sparse.truncate(recipe_lines.MOST_FILE_BYTES)
    with pytest.raises(BadRecipeFile, match="already"):
        append(str(file), to_text(A))
    assert file.stat().st_size == recipe_lines.MOST_FILE_BYTES
