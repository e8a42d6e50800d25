"""The tables of commands on terminals of each width, with eight devices and long names of kernels.

Of most the whole output is compared with what stands in ``tests/tables``. After a change that is meant,
`WRITE_TABLES=1` writes that anew, to be read before it is committed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
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
from tree import DAY_S, make

TABLES = Path(__file__).with_name("tables")
PACKS = ("llama-70b", "nightly-" + "x" * 40)
DEVICES = tuple(map(str, range(8)))


class Shown(NamedTuple):
    """A command whose table is looked at, and what must be whole in it at each width."""

    words: tuple[str, ...]
    whole: tuple[str, ...] = ()
    has_phrases: bool = False
    """Whether a value may be several words that belong together, and push what follows to the next line."""


COMPARED = {
    "ls": Shown(("ls", "--root", "ROOT")),
    "du": Shown(("du", "--root", "ROOT"), ("store", *(f"triton/{n}" for n in DEVICES), "100.0")),
    "du-by-kernel": Shown(("du", "--by", "kernel", "--root", "ROOT")),
    "stats": Shown(("stats", "--root", "ROOT"), (*DEVICES, "all")),
    "devices": Shown(("devices", "--root", "ROOT"), tuple(f"FAKE-{n}" for n in DEVICES)),
    "config": Shown(("config", "--root", "ROOT"), has_phrases=True),
    "caches": Shown(("caches", "--root", "ROOT"), ("flashinfer-cubins", "torch-extensions")),
    "prune": Shown(("prune", "--max-entries", "5", "-n", "--root", "ROOT")),
    "prune-of-many": Shown(
        ("prune", "--max-entries", "0", "-n", "--grace", "15min", "--root", "ROOT")
    ),
    "provision": Shown(("provision", "--root", "ROOT"), tuple(f"ROOT/triton/{n}" for n in DEVICES)),
    "remote-ls": Shown(("remote", "ls", "--remote", "REMOTE"), PACKS),
}
"""Those whose whole output is compared."""
OTHERS = {
    "remote check": Shown(("remote", "check", "--remote", "REMOTE")),
    "doctor --codes": Shown(("doctor", "--codes"), ("root-missing", "gpu-version-mismatch")),
    "verify --codes": Shown(("verify", "--codes"), ("recipe-damaged",)),
}
"""Those that tell how long something took, or get a line with each new code."""


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Thirty kernels on eight devices, each of which has counted much, at a path that is as long each time."""
    home = Path(tempfile.mkdtemp(prefix="tables-", dir="/tmp"))
    root = home / "root"
    make(str(root), 30, 8)
    stats = root / "gpucache/v1/stats"
    stats.mkdir(exist_ok=True)
    folded = [{"device": str(number), "values": COUNTED} for number in range(8)]
    (stats / "folded.json").write_text(json.dumps(folded))
    (root / "jit/warp/1.9.0").mkdir(parents=True)
    put = time.time() - 40.5 * DAY_S
    for name in PACKS:
        pack = home / "remote/v1/packs" / name
        pack.parent.mkdir(parents=True, exist_ok=True)
        pack.write_bytes(bytes(123_456))
        os.utime(pack, (put, put))
    yield root
    shutil.rmtree(home)


def seen_whole(monkeypatch: pytest.MonkeyPatch, shown: Shown, columns: int, root: Path) -> str:
    """What a person sees of a command, in which nothing is cut, and no line wider than the terminal."""

    def named(word: str) -> str:
        return word.replace("ROOT", str(root)).replace("REMOTE", f"file://{root.parent}/remote")

    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "8xH100:9.0")
    seen = seen_here(monkeypatch, columns, *map(named, shown.words))
    lines = table_of(seen)
    assert len(lines) > 1
    assert_whole(seen, map(named, shown.whole))
    longest = max(len(word) for line in lines for word in line.split())
    # Else a path or a name is too long by itself.
    if longest + 20 < columns and not shown.has_phrases:
        assert_fits(seen, columns)
    return seen


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMPARED)
def test_what_is_seen_is_what_was_read_and_agreed_to(name, columns, root, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr("gpucache.directories.jit_level.torch_version", lambda path: None)
    seen = seen_whole(monkeypatch, COMPARED[name], columns, root)
    seen = seen.replace(root.parent.name, "tables-________")
    file = TABLES / f"{name}-{columns}.txt"
    if os.environ.get("WRITE_TABLES"):
        TABLES.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
    assert seen == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", OTHERS)
def test_no_table_is_cut_or_wider_than_its_terminal(name, columns, root, monkeypatch):
    seen_whole(monkeypatch, OTHERS[name], columns, root)


def test_a_note_tells_what_was_left_out(root, monkeypatch, capsys):
    seen_here(monkeypatch, 60, "stats", "--root", root)
    assert capsys.readouterr().err.startswith("note: 60 columns wide: without ")


EIGHT = "\n".join(
    f"[gpu]\nname = NVIDIA H100 80GB HBM3\nuuid = GPU-{n}942190a-aa31-4ff1-4aa9-c388d80f85f{n}\ncc = 9.0"
    for n in range(8)
)
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
