"""The tables of all commands on terminals of each width, with eight devices and long names."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.terminals import (
    COUNTED,
    WIDTHS,
    assert_fits,
    assert_whole,
    at_width,
    seen_here,
    table_of,
)
from tree import make

REMOTE_NAME = "nightly-" + "x" * 40


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Twelve kernels on eight devices, each of which has counted much, at a short path."""
    home = Path(tempfile.mkdtemp(prefix="tables-", dir="/tmp"))
    root = home / "root"
    make(str(root), 12, 8)
    stats = root / "gpucache/v1/stats"
    stats.mkdir(exist_ok=True)
    folded = [{"device": str(number), "values": COUNTED} for number in range(8)]
    (stats / "folded.json").write_text(json.dumps(folded))
    units = root / "jit/warp/1.9.0"
    units.mkdir(parents=True)
    yield root
    shutil.rmtree(home)


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A shared directory with a pack of a long name."""
    pack = tmp_path / "remote/v1/packs" / REMOTE_NAME
    pack.parent.mkdir(parents=True)
    pack.write_bytes(bytes(123_456))
    return f"file://{tmp_path}/remote"


class Shown(NamedTuple):
    """A command whose table is looked at, and what must be whole in it at each width."""

    words: tuple[str, ...]
    whole: tuple[str, ...]


EIGHT = "\n".join(
    f"[gpu]\nname = NVIDIA H100 80GB HBM3\nuuid = GPU-{n}942190a-aa31-4ff1-4aa9-c388d80f85f{n}\ncc = 9.0"
    for n in range(8)
)
DEVICES = tuple(map(str, range(8)))
COMMANDS = {
    "ls": Shown(("ls", "--root", "ROOT"), ()),
    "du": Shown(("du", "--root", "ROOT"), ("store", *(f"triton/{n}" for n in DEVICES), "100.0")),
    "du by kernel": Shown(("du", "--by", "kernel", "--root", "ROOT"), ()),
    "stats": Shown(("stats", "--root", "ROOT"), (*DEVICES, "all")),
    "devices": Shown(("devices", "--root", "ROOT"), tuple(f"FAKE-{n}" for n in DEVICES)),
    "caches": Shown(("caches", "--root", "ROOT"), ("flashinfer-cubins", "torch-extensions")),
    "prune": Shown(("prune", "--max-entries", "5", "-n", "--root", "ROOT"), ()),
    "provision": Shown(("provision", "--root", "ROOT"), tuple(f"ROOT/triton/{n}" for n in DEVICES)),
    "remote ls": Shown(("remote", "ls", "--remote", "REMOTE"), (REMOTE_NAME,)),
    "remote check": Shown(("remote", "check", "--remote", "REMOTE"), ()),
    "doctor --codes": Shown(("doctor", "--codes"), ("root-missing", "gpu-version-mismatch")),
    "verify --codes": Shown(("verify", "--codes"), ("recipe-damaged",)),
}


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_table_is_cut_or_wider_than_its_terminal(name, columns, root, remote, monkeypatch):
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "8xH100:9.0")

    def named(word: str) -> str:
        return word.replace("ROOT", str(root)).replace("REMOTE", remote)

    command = COMMANDS[name]
    shown = seen_here(monkeypatch, columns, *map(named, command.words))
    lines = table_of(shown)
    assert len(lines) > 1
    assert_whole(shown, map(named, command.whole))
    longest = max(len(word) for line in lines for word in line.split())
    if longest + 20 < columns:  # else a path or a name is too long by itself
        assert_fits(shown, columns)


def test_a_note_tells_what_was_left_out(root, monkeypatch, capsys):
    seen_here(monkeypatch, 60, "stats", "--root", root)
    assert capsys.readouterr().err.startswith("note: 60 columns wide: without ")


UUID = "GPU-{n}942190a-aa31-4ff1-4aa9-c388d80f85f{n}"
NAME = "NVIDIA H100 80GB HBM3"


def note(columns: int, left_out: str) -> str:
    how = "a wider terminal or --json shows all"
    return f"note: {columns} columns wide: without {left_out}; {how}\n"


DEVICES_AT = {
    60: (
        "ordinal  directory  uuid",
        f"      {{n}}  {{n}}          {UUID}",
        note(60, "name, capability, memory"),
    ),
    80: (
        "ordinal  directory  capability  uuid",
        f"      {{n}}  {{n}}                 9.0  {UUID}",
        note(80, "name, memory"),
    ),
    100: (
        "ordinal  directory  name                   capability  uuid",
        f"      {{n}}  {{n}}          {NAME}         9.0  {UUID}",
        note(100, "memory"),
    ),
    200: (
        "ordinal  directory  name                   capability    memory  uuid",
        f"      {{n}}  {{n}}          {NAME}         9.0  80.0 GiB  {UUID}",
        "",
    ),
}
"""The head, the line of each device by its number, and what comes below."""


@pytest.mark.parametrize("columns", WIDTHS)
def test_eight_devices_whole(columns, machine):
    shown = at_width(["devices"], columns, env={**machine(EIGHT), "TERM": "dumb"})
    head, line, below = DEVICES_AT[columns]
    lines = [head, *(line.format(n=number) for number in range(8))]
    assert shown == "".join(f"{one}\n" for one in lines) + below
