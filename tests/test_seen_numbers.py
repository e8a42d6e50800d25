"""The highest number of each pack is remembered, and a memory that was lost or planted hurts nobody."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpucache.disk.files import make_below_root
from gpucache.layout.paths import ours
from gpucache.transfer.seen_numbers import note_number, seen_number


@pytest.fixture
def made(root: Path) -> str:
    make_below_root(ours(str(root), "tmp"))
    return str(root)


def test_the_highest_number_of_a_name_is_remembered(made):
    assert seen_number(made, "llama") is None
    for number in (3, 7, 5):
        note_number(made, "llama", number)
    note_number(made, "other", 1)
    assert seen_number(made, "llama") == 7
    assert seen_number(made, "other") == 1


def test_a_number_of_zero_is_a_number(made):
    note_number(made, "llama", 0)
    assert seen_number(made, "llama") == 0


def test_of_too_many_names_those_go_that_were_seen_first(made):
    path = Path(ours(made, "packs", "numbers.json"))
    path.parent.mkdir(parents=True)
    numbers = {f"pack-{number}": number for number in range(1000)}
    path.write_text(json.dumps({"version": 1, "numbers": numbers}))
    note_number(made, "pack-0", 2000)
    note_number(made, "new", 1)
    assert seen_number(made, "pack-1") is None
    assert seen_number(made, "pack-0") == 2000
    assert seen_number(made, "new") == 1
    assert len(json.loads(path.read_text())["numbers"]) == 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[]",
        b"7",
        b'{"version": 2, "numbers": {"llama": 7}}',
        b'{"version": 1, "numbers": ["llama"]}',
        b'{"version": 1, "numbers": {"llama": "7"}}',
        b'{"version": 1, "numbers": {"llama": true}}',
        b'{"version": 1, "numbers": {"llama": 1e308}}',
        b"0" * 2_000_000,
    ],
)
def test_a_file_without_sense_is_no_memory_and_is_replaced(content, made):
    path = Path(ours(made, "packs", "numbers.json"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert seen_number(made, "llama") is None
    note_number(made, "llama", 3)
    assert seen_number(made, "llama") == 3


def test_what_is_no_file_is_no_memory(made):
    path = Path(ours(made, "packs", "numbers.json"))
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert seen_number(made, "llama") is None
