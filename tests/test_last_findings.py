"""What `doctor` and `verify` have found last is kept by code for `gpucache metrics`, in bounds, and harms nobody."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gpucache.findings import Finding
from gpucache.store import last_findings as kept
from gpucache.store.last_findings import Code, last_findings, note_findings


@pytest.fixture
def directory(root: Path) -> Path:
    for part in ("stats", "tmp"):
        (root / "gpucache/v1" / part).mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    return root / "gpucache/v1/stats"


NAN, INFINITY = float("nan"), float("inf")


def finding(code: str, level: str = "error") -> Finding:
    return Finding(code, level, "subject", "fact", "fix")


def test_findings_are_counted_by_level_and_code_with_their_time(root, directory):
    before = time.time()
    note_findings(
        str(root), "verify", [finding("digest"), finding("digest"), finding("x", "warning")]
    )
    (one,) = last_findings(str(root))
    assert one.command == "verify"
    assert one.counts == {Code("error", "digest"): 2, Code("warning", "x"): 1}
    assert before <= one.at <= time.time()


def test_what_was_found_before_by_the_same_command_is_forgotten(root, directory):
    note_findings(str(root), "doctor", [finding("old")])
    note_findings(str(root), "verify", [])
    note_findings(str(root), "doctor", [])
    assert {one.command: one.counts for one in last_findings(str(root))} == {
        "doctor": {},
        "verify": {},
    }


@pytest.mark.parametrize("command", ["doctor", "verify"])
def test_the_commands_write_it(here, root, directory, command):
    here(command, "--root", root, "--json")
    assert [one.command for one in last_findings(str(root))] == [command]


def test_a_root_without_counters_stays_as_it_is(here, root):
    root.mkdir(mode=0o700)
    (root / "triton").mkdir(mode=0o700)
    here("doctor", "--root", root, "--json")
    assert os.listdir(root) == ["triton"]


def test_through_what_another_user_has_planted_nothing_is_written(here, root, directory, tmp_path):
    directory.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)
    here("doctor", "--root", root, "--json")
    assert list(elsewhere.iterdir()) == []


def test_of_more_hosts_those_go_that_were_written_first(root, directory, monkeypatch):
    monkeypatch.setattr(kept, "_MOST_FILES", 3)
    for number in range(5):
        monkeypatch.setattr(kept, "host_label", lambda number=number: f"pod{number}")
        note_findings(str(root), "doctor", [])
        os.utime(directory / f"pod{number}.doctor.found", (number, number))
    assert [one.host for one in last_findings(str(root))] == ["pod2", "pod3", "pod4"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"counts": 7}',
        json.dumps({"host": "h", "at": 1, "counts": [["error", "x", "many"]]}),
        json.dumps({"host": "h", "at": 1e999, "counts": [["error", "x", 1e999]]}),
        *(json.dumps({"host": "h", "at": at, "counts": []}) for at in (NAN, INFINITY, -1.0)),
        "[" * 10_000,
        "x" * 2**20,
    ],
)
def test_a_file_that_makes_no_sense_is_not_known(root, directory, text):
    (directory / "h.doctor.found").write_text(text)
    assert last_findings(str(root)) == []


def test_of_two_files_of_one_host_and_command_the_later_counts(root, directory):
    note_findings(str(root), "doctor", [finding("new")])
    (newer,) = directory.iterdir()
    said = {**json.loads(newer.read_text()), "at": 5, "counts": [["error", "old", 1]]}
    (directory / "a-copy.doctor.found").write_text(json.dumps(said))
    (directory / "z-copy.doctor.found").write_text(json.dumps(said))
    (one,) = last_findings(str(root))
    assert one.counts == {Code("error", "new"): 1}


def test_neither_a_fold_nor_a_sum_takes_it_for_counters(root, directory, here):
    note_findings(str(root), "doctor", [finding("x")])
    here("stats", "--root", root)
    assert len(last_findings(str(root))) == 1
