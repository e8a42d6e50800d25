"""What people see of findings: a paragraph for each code, whose words and commands can be copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import on_a_terminal
from support.terminals import put_terminal

from gpucache.cli.findings import filled, print_findings
from gpucache.findings import Finding, Level

MENDED = "gpucache verify --repair --root /r"
CODES = {"group-elsewhere": "a __grp__ file names another directory", "link": "a link"}


def elsewhere(number: int, fact: str = "names /old") -> Finding:
    return Finding("group-elsewhere", "warning", f"/r/triton/0/{number}", fact, MENDED)


def broken(path: str, level: Level = "error") -> Finding:
    return Finding("unreadable", level, path, "Permission denied", "look at it as its owner")


def shown(
    monkeypatch: pytest.MonkeyPatch,
    *findings: Finding,
    notes: tuple[str, ...] = (),
    each: bool = False,
) -> list[str]:
    terminal = put_terminal(monkeypatch, "stdout", columns=200)
    print_findings(findings, notes, codes=CODES, each=each)
    return terminal.seen.splitlines()


def test_piped_each_is_a_line_that_nothing_in_a_name_ends(capfdbinary):
    print_findings([broken("/a\nb"), elsewhere(1)], ["mended", ""], codes=CODES)
    assert capfdbinary.readouterr().out == (
        b"error\tunreadable\t/a\\nb\tPermission denied\tmended\n"
        b"warning\tgroup-elsewhere\t/r/triton/0/1\tnames /old\tgpucache verify --repair --root /r\n"
    )


def test_a_code_has_a_head_three_examples_and_one_way_out(monkeypatch):
    assert shown(monkeypatch, *map(elsewhere, range(6200))) == [
        "warning: 6200 times [group-elsewhere]: names /old",
        "  /r/triton/0/0",
        "  /r/triton/0/1",
        "  /r/triton/0/2",
        "  and 6197 more (--all shows each)",
        f"  -> {MENDED}",
    ]


def test_all_shows_each(monkeypatch):
    lines = shown(monkeypatch, *map(elsewhere, range(5)), each=True)
    assert lines[1:-1] == [f"  /r/triton/0/{number}" for number in range(5)]


def test_facts_that_differ_stand_behind_their_paths_and_the_meaning_in_the_head(monkeypatch):
    lines = shown(monkeypatch, elsewhere(1), elsewhere(2, "names /older"))
    assert lines == [
        "warning: 2 times [group-elsewhere]: a __grp__ file names another directory",
        "  /r/triton/0/1: names /old",
        "  /r/triton/0/2: names /older",
        f"  -> {MENDED}",
    ]


def test_errors_come_first_and_levels_of_one_code_stay_apart(monkeypatch):
    lines = shown(monkeypatch, elsewhere(1), broken("/w", "warning"), broken("/e"))
    assert [line for line in lines if not line.startswith("  ")] == [
        "error: /e: Permission denied [unreadable]",
        "warning: /r/triton/0/1: names /old [group-elsewhere]",
        "warning: /w: Permission denied [unreadable]",
    ]


def test_what_was_done_is_counted_where_that_differs(monkeypatch):
    notes = ("moved to the quarantine", "it is locked", "moved to the quarantine", "")
    lines = shown(monkeypatch, *map(elsewhere, range(4)), notes=notes)
    assert lines[-3:] == [
        "  -> 2 times: moved to the quarantine",
        "  -> 1 time: it is locked",
        f"  -> 1 time: {MENDED}",
    ]


def test_names_command_no_terminal(monkeypatch):
    hostile = [broken(f"/r/\x1b[31m{number}\nx") for number in range(2)]
    seen = "\n".join(shown(monkeypatch, *hostile))
    assert "\x1b" not in seen
    assert "/r/\\x1b[31m0\\nx" in seen


def test_levels_are_coloured_and_no_color_takes_that_away(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = put_terminal(monkeypatch, "stdout", columns=80)
    monkeypatch.setenv("TERM", "xterm-256color")
    print_findings([broken("/e")], codes=CODES)
    assert "\x1b[1;31merror\x1b[0m: /e" in terminal.seen
    terminal = put_terminal(monkeypatch, "stdout", columns=80)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    print_findings([broken("/e")], codes=CODES)
    assert "\x1b[1merror\x1b[0m: /e" in terminal.seen


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_lines_end_between_words_and_never_in_a_path_or_command(width):
    text = "the directory /a/very/long/path/of/a/root is not safe: run `chmod go-w /a/very/long` as its owner"
    lines = filled(text, width, "error: ")
    assert " ".join(line.strip() for line in lines) == f"error: {text}"
    assert any("`chmod go-w /a/very/long`" in line for line in lines)
    for line in lines:
        words = line.removeprefix("error: ").strip()
        is_one = " " not in words.replace("`chmod go-w /a/very/long`", "command")
        assert len(line) <= width or is_one


def test_a_moved_cache_is_a_few_lines_on_a_terminal_and_a_line_each_when_piped(
    here, keys: list[str], tmp_path: Path
):
    root = tmp_path / "root"
    moved = root.rename(tmp_path / "moved")
    found = here("verify", "--root", moved)
    told = [row for row in found.rows if row[1] == "group-elsewhere"]
    assert len(told) == 2 * len(keys)  # in the store, and the view
    _, seen = on_a_terminal("verify", "--root", moved)
    assert f"warning: {len(told)} times [group-elsewhere]: " in seen
    assert f"  and {len(told) - 3} more (--all shows each)\n" in seen
    assert seen.count(str(moved)) <= 5
    _, seen = on_a_terminal("verify", "--all", "--root", moved)
    for row in told:
        assert f"  {row[2]}" in seen


def test_ls_tells_of_three_of_a_code_and_how_many_more(here, keys: list[str], tmp_path: Path):
    root = tmp_path / "root"
    for number in range(5):
        (root / "triton/0" / f"{'A' * 51}{number + 2}").symlink_to("/nowhere")
    told = here("ls", "--root", root).err.splitlines()
    assert len(told) == 4
    assert told[-1] == "note: and 2 more such [link]; --json names each"


class TestDoctor:
    def test_it_ends_with_what_is_well(self, here, keys: list[str], tmp_path: Path):
        root = tmp_path / "root"
        done = here("doctor", "--root", root)
        assert done.err.splitlines()[-1].startswith("well: ")
        well = here("doctor", "--json", "--root", root).json["well"]
        assert done.err.splitlines()[-1] == f"well: {', '.join(well)}"
        assert {"owners and modes", "space", "locks"} <= set(well)
        assert not {"the remote", "the fallback"} & set(well)

    def test_what_has_a_finding_is_not_well(self, here, keys: list[str], tmp_path: Path):
        root = tmp_path / "root"
        root.chmod(0o777)
        said = json.loads(here("doctor", "--json", "--root", root).out)
        assert "owners and modes" not in said["well"]

    def test_of_what_is_no_cache_nothing_on_disk_is_called_well(self, here, tmp_path: Path):
        (tmp_path / "thesis.txt").touch()
        said = json.loads(here("doctor", "--json", "--root", tmp_path).out)
        assert not {"space", "locks", "owners and modes"} & set(said["well"])
