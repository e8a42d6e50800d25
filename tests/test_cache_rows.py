"""What the commands' own tests do not show: entries that are no kernels, and times that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.trees import Tree

from gpucache.cli import cache_rows
from gpucache.cli.cache_rows import entry_row
from gpucache.cli.du import usage_rows
from gpucache.cli.plan_rows import part_cells, parts
from gpucache.cli.whole_entry import entry_whole, field_cells
from gpucache.report.cache_report import scan
from gpucache.report.entries import Entry
from gpucache.upkeep.clean import CleanPolicy
from gpucache.upkeep.plan import plan

LIBRARY, AUTOTUNE = "A" * 52, "B" * 52


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A directory of stock Triton with a library and an autotune result, of 2001."""
    files = {f"{LIBRARY}/cuda_utils.so": b"\x7fELF", f"{AUTOTUNE}/add.autotune.json": b"{}"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (1e9, 1e9))
    return tmp_path


def entry(root: Path, key: str) -> Entry:
    return next(entry for entry in scan(str(root)).entries if entry.key == key)


def test_a_library_has_no_architecture_and_no_cubin(stock):
    found = entry(stock, LIBRARY)
    row = entry_row(found)
    assert [row[name] for name in ("key", "kind", "kernel", "files")] == [
        LIBRARY,
        "library",
        "cuda_utils.so",
        1,
    ]
    assert [row[name] for name in ("target", "arch", "triton_version", "stored")] == [
        None,
        None,
        None,
        False,
    ]
    assert [row[name] for name in ("logical_bytes", "physical_bytes", "held_bytes")] == [4, 4, 0]
    assert [row[name] for name in ("created", "used", "directories")] == [1e9, 1e9, ["."]]
    nothing = dict.fromkeys(
        ("cubin", "registers", "shared_bytes", "warps", "options", "environment")
    )
    assert entry_whole(found).items() >= nothing.items()


def test_its_fields_are_lines(stock):
    path = f"{stock}/{LIBRARY}"
    assert field_cells(entry_whole(entry(stock, LIBRARY))) == [
        *(
            ("key", LIBRARY),
            ("kind", "library"),
            ("kernel", "cuda_utils.so"),
            ("target", "-"),
            ("arch", "-"),
        ),
        *(
            ("triton_version", "-"),
            ("logical_bytes", "4"),
            ("physical_bytes", "4"),
            ("held_bytes", "0"),
        ),
        *(
            ("file", "cuda_utils.so 4"),
            ("created", "2001-09-09T01:46:40Z"),
            ("used", "2001-09-09T01:46:40Z"),
        ),
        *(
            ("stored", "false"),
            ("recipe", "false"),
            ("directories", "."),
            ("uid", str(os.getuid())),
        ),
        *((name, "-") for name in ("warps", "stages", "registers", "spills", "shared_bytes")),
        *(("stock", path), ("cubin", "-"), ("stack_bytes", "-")),
        ("path", f"so={path}/cuda_utils.so"),
        ("function", "-"),
    ]


def test_autotune_results_are_named_after_their_kernel(stock):
    assert entry_row(entry(stock, AUTOTUNE))["kind"] == "autotune"
    assert entry_row(entry(stock, AUTOTUNE))["kernel"] == "add"


def test_what_has_no_architecture_is_counted_under_a_dash(stock):
    (row,) = usage_rows(scan(str(stock)), "arch")
    assert row == {"name": "-", "files": 2, "logical_bytes": 6, "physical_bytes": 6}


def test_a_plan_tells_strays_by_their_kind_and_path(stock):
    stray = stock / LIBRARY / "tmp.pid_1_a"
    stray.mkdir()
    (stray / "part").write_bytes(bytes(2048))
    os.utime(stray, (1e9, 1e9))
    made = plan(scan(str(stock)), CleanPolicy(grace_s=900.0), {})
    assert next(row for row in part_cells(parts(made), human=False) if row[0] == "sweep") == (
        *("sweep", "triton-temporary", str(stray), "2048", "2001-09-09T01:46:40Z"),
    )
    shown = next(row for row in part_cells(parts(made), human=True) if row[0] == "sweep")
    assert shown[3] == "2.0 KiB"
    assert shown[4].endswith(" d ago")


@pytest.mark.parametrize("when", [1e20, -1e20, float("inf")])
def test_a_time_that_is_none_is_a_dash(when):
    assert cache_rows.utc(when) == "-"


@pytest.mark.parametrize("recipe", [None, b"how"])
def test_the_store_alone_has_a_recipe_and_it_is_counted_there(recipe, tmp_path):
    """`du` has as many files as there are, and as many bytes."""
    tree = Tree(tmp_path, recipe=recipe)
    report = scan(str(tree.root))
    (found,) = report.entries
    assert entry_row(found)["recipe"] is (recipe is not None)
    rows = {row["name"]: row for row in usage_rows(report, "device")}
    for name, directory in (("store", tree.entry), ("0", tree.view), ("1", tree.other_view)):
        files = [*directory.iterdir()]
        assert rows[name]["files"] == len(files)
        assert rows[name]["logical_bytes"] == sum(path.stat().st_size for path in files)
