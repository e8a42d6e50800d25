"""`compare`: two kernels side by side, and the unified diffs of their forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import check, documented, on_a_terminal
from support.terminals import WIDTHS, assert_fits, assert_whole, at_width
from support.trees import KEY, stock_entry

from gpucache.diagnosis import comparison
from gpucache.diagnosis.comparison import text_difference
from gpucache.kernels.mlir import Places, code_lines
from gpucache.report.find import find_entries

OTHER = "B" * 52


@pytest.fixture
def pair(tuned) -> tuple[str, str]:
    """The keys of two kernels that differ in two options."""
    return tuned.keys["constant"], tuned.keys["options"]


def rows(here, tuned, *words) -> dict[tuple[str, str], list[str]]:
    done = here("compare", *words, "--root", tuned.root)
    assert (done.code, done.err) == (0, "")
    return {(row[0], row[1]): row[2:] for row in done.rows}


def test_what_differs_and_what_both_need_is_shown_side_by_side(here, tuned, pair):
    found = rows(here, tuned, *pair)
    assert found["option", "num_warps"] == ["4", "8"]
    assert found["option", "num_stages"] == ["3", "4"]
    assert ("option", "num_ctas") not in found
    assert found["needs", "shared_bytes"] == ["0", "0"]
    for name in ("registers", "instructions"):
        assert all(int(value) > 0 for value in found["needs", name])


def test_all_shows_what_they_have_in_common_too(here, tuned, pair):
    found = rows(here, tuned, *pair, "--all")
    assert found["option", "num_ctas"] == ["1", "1"]
    assert found["kernel", "name"] == ["scaled", "scaled"]
    assert found["type", "x"] == ["*fp32", "*fp32"]
    constants = [values for (part, _), values in found.items() if part == "constant"]
    assert ["1024", "1024"] in constants
    assert found.items() >= rows(here, tuned, *pair).items()


def test_a_moved_function_and_another_type_are_rows(here, tuned):
    first, moved, other = (tuned.keys[name] for name in ("first", "moved", "type"))
    one, two = rows(here, tuned, first, moved)["kernel", "function"]
    assert (one.rpartition("/")[2], two.rpartition("/")[2]) == ("tune.py:8", "tune.py:9")
    assert rows(here, tuned, first, other)["type", "x"] == ["*fp32", "*fp16"]


def test_json_is_what_the_page_says(here, tuned, pair):
    (outer, inner), values = documented("compare")
    said = here("compare", *pair, "--json", "--root", tuned.root).json
    check(said, outer, a=str, b=str)
    kinds = (str, int, type(None))
    for row in said["rows"]:
        check(row, inner, part=str, a=kinds, b=kinds, differs=bool)
        assert row["part"] in values["part"]
        assert row["differs"] == (row["a"] != row["b"])


def test_without_a_disassembler_instructions_are_not_counted(here, tuned, pair, monkeypatch):
    monkeypatch.setattr(comparison, "disassembler", lambda environ: None)
    assert ("needs", "instructions") not in rows(here, tuned, *pair)


class TestDiff:
    @pytest.mark.parametrize("form", ["ttgir", "llir", "ptx", "sass", "json"])
    def test_it_is_a_unified_diff_of_the_form(self, form, here, tuned, pair):
        done = here("compare", *pair, "--diff", form, "--root", tuned.root)
        assert (done.code, done.err) == (0, "")
        one, two, at, *_ = done.out.splitlines()
        assert one == f"--- {pair[0][:12]}/scaled.{form}"
        assert two == f"+++ {pair[1][:12]}/scaled.{form}"
        assert at.startswith("@@ -")

    def test_what_is_the_same_is_said_to_be(self, here, tuned, pair):
        done = here("compare", *pair, "--diff", "ttir", "--root", tuned.root)
        assert (done.code, done.out, done.err) == (0, "", "note: their ttir is the same\n")

    @pytest.mark.parametrize("form", ["ttir", "ttgir", "llir", "ptx", "sass"])
    def test_a_function_that_was_only_moved_differs_in_raw_text_alone(self, form, tuned):
        """Sass has no lines of Python, and does not differ at all."""
        one, other = (_entry(tuned, name) for name in ("first", "moved"))
        assert text_difference(one, other, form, {}) == []
        assert bool(text_difference(one, other, form, {}, raw=True)) == (form != "sass")

    def test_sass_without_addresses_differs_only_where_instructions_do(self, tuned):
        one, other = (_entry(tuned, name) for name in ("first", "type"))
        bare = text_difference(one, other, "sass", {})
        raw = text_difference(one, other, "sass", {}, raw=True)
        assert 0 < len(bare) < len(raw)

    def test_a_binary_is_refused_with_the_form_that_is_meant(self, here, tuned, pair):
        done = here("compare", *pair, "--diff", "cubin", "--root", tuned.root)
        assert (done.code, done.out) == (1, "")
        assert "hint: compare sass" in done.err

    def test_json_has_the_lines(self, here, tuned, pair):
        (outer,), _ = documented("compare --diff")
        said = here("compare", *pair, "--diff", "ptx", "--json", "--root", tuned.root).json
        check(said, outer, a=str, b=str, form=str, diff=list)
        assert said["diff"][0] == f"--- {pair[0][:12]}/scaled.ptx"

    def test_a_terminal_has_colours_unless_they_are_not_wanted(self, tuned, pair):
        words = ("compare", *pair, "--diff", "ptx", "--root", tuned.root)
        code, seen = on_a_terminal(*words, env={"TERM": "xterm-256color"})
        assert code == 0
        assert "\x1b[32m+" in seen
        _, seen = on_a_terminal(*words, env={"TERM": "xterm-256color", "NO_COLOR": "1"})
        assert "\x1b[32m" not in seen

    def test_a_letter_that_the_locale_lacks_is_shown_by_its_number(self, tmp_path):
        for key, text in ((KEY, "first"), (OTHER, "größer")):
            directory = Path(stock_entry(tmp_path / "root/triton/0", key))
            (directory / "k.ttir").write_text(f"{text}\n")
        words = ("compare", KEY, OTHER, "--diff", "ttir", "--root", tmp_path / "root")
        code, seen = on_a_terminal(*words, env={"PYTHONIOENCODING": "ascii"})
        assert code == 0
        assert "+gr\\xf6\\xdfer\n" in seen.replace("\r\n", "\n")


def test_one_key_twice_is_said_to_be_that(here, tuned, pair):
    done = here("compare", pair[0], pair[0][:20], "--root", tuned.root)
    assert done.code == 0
    assert done.err == f"note: both are scaled {pair[0]}\n"
    assert {row[0] for row in done.rows} == {"needs"}


def test_what_is_no_kernel_is_refused(here, tmp_path):
    directory = tmp_path / "root/triton/0" / KEY
    directory.mkdir(parents=True)
    (directory / "add.autotune.json").write_text("{}")
    for words in (("compare", KEY, KEY), ("why", KEY)):
        done = here(*words, "--root", tmp_path / "root")
        assert (done.code, done.out) == (1, "")
        assert "is no kernel" in done.err


def test_raw_without_diff_is_wrong_use(here, tuned, pair):
    assert here("compare", *pair, "--raw", "--root", tuned.root).code == 2


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_table_fits_its_terminal_with_whole_names(columns, tuned, pair):
    seen = at_width(["compare", *pair, "--root", tuned.root], columns)
    assert_fits(seen, columns)
    assert_whole(seen, [pair[0][:12], pair[1][:12], "num_stages", "registers"])


def test_lines_of_a_form_know_their_lines_of_python(tuned):
    directory = tuned.root / "triton/0" / tuned.keys["first"]
    text = (directory / "scaled.ttir").read_text()
    places = Places(text)
    lines = code_lines(text)
    store = next(line for line in lines if line.text.startswith("tt.store"))
    place = places.place(store.location)
    assert place is not None
    assert place.endswith("/tune.py:11")
    assert all(" loc(" not in line.text for line in lines)
    assert places.place(None) is None


def test_locations_that_lead_in_a_circle_lead_nowhere():
    text = '#loc1 = loc("a"(#loc2))\n#loc2 = loc("b"(#loc1))\n'
    assert Places(text).place("#loc1") is None


def _entry(tuned, name: str):
    (entry,) = find_entries(str(tuned.root), tuned.keys[name])
    return entry
