from __future__ import annotations

import os

import pytest
from support.recipes import recipe

from gpucache.kernels import recipe_lines
from gpucache.kernels.recipe import MOST_BYTES, to_text
from gpucache.kernels.recipe_lines import FORMAT_LINE, BadLine, BadRecipeFile, read_recipe_file

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
