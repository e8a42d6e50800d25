"""`ls KEY` for people: what a kernel's author asks, paths that can be copied, and what autotuners measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from support.cli import on_a_terminal, table
from support.terminals import WIDTHS, at_width
from support.trees import KEY, stock_entry

from gpucache.store.manifest import entry_path

TIMINGS = [
    [{"kwargs": {"BLOCK": 128}, "num_warps": 4, "num_ctas": 1, "pre_hook": None}, [0.5, 0.4, 0.7]],
    [{"kwargs": {"BLOCK": 256}, "num_warps": 8, "num_ctas": 1}, [0.25, 0.2, 0.35]],
    [{"kwargs": {"BLOCK": 1 << 20}, "num_warps": 4, "num_ctas": 1}, [math.inf] * 3],
]
MEASURED = {"key": [4096, "torch.float32"], "configs_timings": TIMINGS}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A root with an autotuner's result, as stock Triton leaves it."""
    directory = tmp_path / "root/triton/0" / KEY
    directory.mkdir(parents=True)
    (directory / "scaled.autotune.json").write_text(json.dumps(MEASURED))
    return tmp_path / "root"


def fields(seen: str) -> dict[str, str]:
    """The fields of the table, whose prose may go on in next lines."""
    lines = [re.split(r"  +", line.rstrip(), maxsplit=1) for line in seen.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0]}


def test_people_see_what_an_author_asks(tuned):
    _, seen = on_a_terminal("ls", tuned.keys["options"], "--root", tuned.root)
    said = fields(seen)
    assert said["key"] == tuned.keys["options"]
    assert "1024" in said["constants"]
    assert said["types"] == "x=*fp32  out=*fp32  n=i32"
    assert said["warps"] == "8, stages 4"
    assert re.fullmatch(r"\d+ a thread, spilled 0 B", said["registers"])
    assert said["shared memory"] == "0 B a block"
    assert said["function"].startswith("tune.scaled ")
    assert said["function"].endswith("/tune.py:8")
    assert said["directories"] == "0"


def test_of_an_amd_kernel_its_assembly_tells_the_registers_as_in_a_list(tmp_path, here):
    entry = Path(stock_entry(tmp_path / "root/triton/0", KEY))
    said = json.loads((entry / "k.json").read_text())
    said["target"] = {"backend": "hip", "arch": "gfx942", "warp_size": 64}
    (entry / "k.json").write_text(json.dumps(said))
    fields = "    .private_segment_fixed_size: 48\n    .vgpr_count:     128\n"
    (entry / "k.amdgcn").write_text(f"\t.amdgpu_metadata\n{fields}")
    (listed,) = here("ls", "--json", "--root", tmp_path / "root").json["entries"]
    assert (listed["registers"], listed["spills"]) == (128, 48)
    whole = here("ls", KEY, "--json", "--root", tmp_path / "root").json
    assert (whole["registers"], whole["spills"], whole["stack_bytes"]) == (128, 48, 48)


@pytest.mark.parametrize("columns", WIDTHS)
def test_each_file_has_a_line_with_its_path_whole_at_any_width(columns, tuned):
    seen = at_width(["ls", tuned.keys["first"][:12], "--root", tuned.root], columns)
    directory = entry_path(str(tuned.root), tuned.keys["first"])
    for form in ("ttir", "ttgir", "llir", "ptx", "cubin", "json"):
        assert re.search(
            rf"^{form} +[\d.]+ (?:B|KiB)  {directory}/scaled\.{form}$", seen, re.MULTILINE
        )
    assert "libdevice" not in seen


def test_an_autotuners_result_is_a_table_of_its_configurations_the_winner_first(measured):
    _, seen = on_a_terminal("ls", KEY[:12], "--root", measured)
    rows = table(seen)
    head = rows.index(["ms", "times", "BLOCK", "num_warps"])
    assert rows[head + 1 : head + 4] == [
        ["winner", "0.25", "1.00x", "256", "8"],
        ["0.5", "2.00x", "128", "4"],
        ["does not run", "-", "1048576", "4"],
    ]
    assert "note: tuned for 4096 torch.float32; all have num_ctas 1\n" in seen


def test_json_has_the_configurations_in_the_order_of_the_trials(measured, here):
    said = here("ls", KEY, "--json", "--root", measured).json["tuning"]
    assert said["tuned_for"] == ["4096", "torch.float32"]
    assert [one["milliseconds"] for one in said["configurations"]] == [
        [0.5, 0.4, 0.7],
        [0.25, 0.2, 0.35],
        None,
    ]
    assert [one["wins"] for one in said["configurations"]] == [False, True, False]
    assert said["configurations"][1]["values"] == {"BLOCK": 256}


def test_piped_each_configuration_is_a_line(measured, here):
    rows = here("ls", KEY, "--root", measured).rows
    told = [row for row in rows if row[0] in ("winner", "configuration", "tuned_for")]
    assert told == [
        ["tuned_for", "4096 torch.float32"],
        ["configuration", "BLOCK=128 num_warps=4 num_ctas=1 0.5 ms"],
        ["winner", "BLOCK=256 num_warps=8 num_ctas=1 0.25 ms"],
        ["configuration", "BLOCK=1048576 num_warps=4 num_ctas=1 does not run"],
    ]


def test_a_list_names_the_winner_where_kernels_have_their_constants(measured, here):
    (row,) = here("ls", "--columns", "kind,constants", "--root", measured).rows
    assert row == ["autotune", "BLOCK=256"]


def test_a_result_that_cannot_be_read_is_listed_without_one(measured, here):
    (measured / "triton/0" / KEY / "scaled.autotune.json").write_text("{")
    assert here("ls", "--columns", "constants", "--root", measured).rows == [["-"]]
    assert here("ls", KEY, "--json", "--root", measured).json["tuning"] is None
    code, _ = on_a_terminal("ls", KEY, "--root", measured)
    assert code == 0


@pytest.mark.parametrize("name", ["shared", "num_warps", "num_stages"])
def test_a_number_of_any_length_stops_no_command(name, tmp_path, here):
    root = tmp_path / "root"
    stock_entry(root / "triton/0", KEY)
    directory = root / "triton/0" / KEY
    stock_entry(root / "triton/0", "B" * 52)
    said = json.loads((directory / "k.json").read_text())
    (directory / "k.json").write_text(json.dumps({**said, name: 10**400}))
    for words in (["ls", KEY], ["ls", "--wide"], ["compare", KEY, "B" * 52]):
        code, seen = on_a_terminal(*words, "--root", root)
        assert code == 0, seen


def test_no_name_of_a_file_commands_the_terminal_or_its_reader(tmp_path):
    root = tmp_path / "root"
    stock_entry(root / "triton/0", KEY)
    directory = root / "triton/0" / KEY
    (directory / "k.\x1b[2J").touch()
    _, seen = on_a_terminal("ls", KEY, "--root", root)
    assert "\x1b[2J" not in seen
    assert "\\x1b[2J  " in seen


def test_json_has_null_for_a_number_that_json_lacks(tmp_path, here):
    root = tmp_path / "root"
    stock_entry(root / "triton/0", KEY, options={"num_warps": 4, "fast": float("nan")})
    done = here("ls", KEY, "--json", "--root", root)
    assert "NaN" not in done.out
    assert done.json["options"] == {"num_warps": 4, "fast": None}


def test_names_in_a_result_cannot_command_the_terminal(measured):
    path = measured / "triton/0" / KEY / "scaled.autotune.json"
    path.write_text(
        json.dumps(
            {"key": ["\x1b[2J"], "configs_timings": [[{"kwargs": {"\x1b[2J": "\x1b[2J"}}, 1.0]]}
        )
    )
    _, seen = on_a_terminal("ls", KEY, "--root", measured)
    assert "\x1b[2J" not in seen
    assert "\\x1b[2J" in seen
