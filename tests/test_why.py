"""`why`: the nearest earlier entry of a kernel, and what differs; as its author asks, after an afternoon's compiles."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from support.cli import check, documented
from support.ranks import python_with_triton
from support.terminals import WIDTHS, assert_fits, assert_whole, at_width
from support.trees import KEY, stock_entry

SOURCE = "source of scaled or a callee"


@pytest.fixture(scope="module")
def block(triton) -> str:
    """The name of the kernel's last constant, which Triton 3.2 does not write down."""
    version = python_with_triton("import triton; print(triton.__version__)")
    return "#4" if version.startswith("3.2") else "BLOCK"


def told(here, tuned, *words) -> dict[str, list[str]]:
    """The piped lines by the key of each compile."""
    done = here("why", *words, "--root", tuned.root)
    assert (done.code, done.err) == (0, "")
    return {row[1]: row for row in done.rows}


def test_each_compile_of_a_kernel_is_told_with_what_differs_by_name(here, tuned, block):
    rows = told(here, tuned, "scaled")
    first = tuned.keys["first"]
    # Triton 3.2 keeps but a form in which constants stand on no line.
    first_in = "its code" if block == "#4" else "first in tune.py:11"
    said = {name: rows[key][4:] for name, key in tuned.keys.items()}
    assert said == {
        "first": ["-", "the first of this kernel that is still there"],
        "constant": [first, f"{block} 512 -> 1024"],
        "options": [tuned.keys["constant"], "num_stages 3 -> 4, num_warps 4 -> 8"],
        "type": [first, "x *fp32 -> *fp16"],
        "target": [first, "cuda:90 -> cuda:80"],
        "moved": [first, "tune.py:9 was line 8"],
        "variable": [first, "TRITON_DISABLE_LINE_INFO unset -> true"],
        "source": [first, f"{SOURCE}, first in tune.py:11"],
        "helper": [tuned.keys["source"], f"{SOURCE}, {first_in}"],
        "json": [tuned.keys["constant"], f"{block} 1024 -> 2048"],
    }


def test_the_newest_compile_comes_first_and_the_limit_holds(here, tuned):
    keys = list(told(here, tuned, "scaled"))
    assert keys == [*tuned.keys.values()][::-1]
    done = here("why", "scaled", "--limit", 3, "--root", tuned.root)
    assert [row[1] for row in done.rows] == keys[:3]
    assert done.err == "note: and 7 earlier compiles; --limit shows more\n"


def test_a_pattern_names_kernels_too(here, tuned):
    assert told(here, tuned, "sca*") == told(here, tuned, "scaled")


def test_a_key_tells_of_that_compile_alone_a_line_for_each_difference(here, tuned):
    done = here("why", tuned.keys["options"][:20], "--root", tuned.root)
    assert done.rows == [["option", "num_stages", "3", "4"], ["option", "num_warps", "4", "8"]]
    near = tuned.keys["constant"][:12]
    assert f"the nearest earlier is {near}, compiled " in done.err
    assert f"gpucache compare {near} {tuned.keys['options'][:12]}" in done.err


def test_the_first_compile_is_said_to_be_that(here, tuned):
    done = here("why", tuned.keys["first"], "--root", tuned.root)
    assert (done.code, done.out) == (0, "")
    assert done.err.endswith(": the first of this kernel that is still there\n")


def test_json_is_what_the_page_says(here, tuned):
    (outer, inner), _ = documented("why")
    said = here("why", "scaled", "--json", "--root", tuned.root).json
    check(said, outer, compiles=list)
    assert len(said["compiles"]) == len(tuned.keys)
    for compiled in said["compiles"]:
        check(compiled, inner, nearest=(str, type(None)), differences=list)


def test_what_is_neither_kernel_nor_key_is_an_error_with_what_is_there(here, tuned):
    done = here("why", "scale", "--root", tuned.root)
    assert (done.code, done.out) == (1, "")
    assert "there is scaled" in done.err
    done = here("why", "", "--root", tuned.root)
    assert (done.code, done.out) == (1, "")


def test_in_an_empty_root_it_says_that_nothing_is_cached_and_how_something_comes(
    here, tmp_path, monkeypatch
):
    root = tmp_path / "root"
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "1")
    assert here("provision", "--root", root).code == 0
    done = here("why", "scaled", "--root", root)
    assert (done.code, done.out) == (1, "")
    assert f"error: nothing is cached in {root}, and so nothing called 'scaled'\n" in done.err
    assert "hint: `gpucache run -- python train.py` caches what it compiles" in done.err


def test_what_stock_triton_cached_has_no_names_of_constants_but_options(here, tmp_path):
    root = tmp_path / "root"
    for number, (key, warps) in enumerate(((KEY, 4), ("B" * 52, 8))):
        stock_entry(root / "triton/0", key, options={"num_warps": warps})
        for path in (root / "triton/0" / key).iterdir():
            os.utime(path, (number + 1, number + 1))
    rows = here("why", "k", "--root", root).rows
    assert [row[4:] for row in rows] == [
        [KEY, "num_warps 4 -> 8"],
        ["-", "the first of this kernel that is still there"],
    ]


def test_a_removed_kernel_is_not_compared_with(here, tuned, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tuned.root, root, symlinks=True)
    for path in root.rglob(tuned.keys["first"]):
        shutil.rmtree(path)
    done = here("why", tuned.keys["constant"], "--root", root)
    assert done.err.endswith(": the first of this kernel that is still there\n")


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_list_fits_its_terminal_with_whole_keys_and_words(columns, tuned):
    seen = at_width(["why", "scaled", "--root", tuned.root], columns)
    assert_fits(seen, columns)
    assert_whole(seen, [key[:12] for key in tuned.keys.values()])
    text = re.sub(r"\s+", " ", seen)
    assert "TRITON_DISABLE_LINE_INFO" in text
    assert seen.splitlines()[0].split()[-2:] == ["what", "differs"]
