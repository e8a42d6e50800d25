"""The whole output of commands that print a table, at each width, with eight devices and long names of kernels.

What is to be seen stands in ``tests/tables``. After a change that is meant, `WRITE_TABLES=1` writes that
anew, to be read before it is committed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.terminals import COUNTED, WIDTHS, seen_here
from tree import DAY_S, make

TABLES = Path(__file__).with_name("tables")
PACKS = ("llama-70b", "nightly-" + "x" * 40)
COMMANDS = {
    "ls": ("ls",),
    "du": ("du",),
    "du-by-kernel": ("du", "--by", "kernel"),
    "stats": ("stats",),
    "devices": ("devices",),
    "config": ("config",),
    "caches": ("caches",),
    "prune": ("prune", "--max-entries", "5", "-n"),
    "prune-of-many": ("prune", "--max-entries", "0", "-n", "--grace", "15min"),
    "provision": ("provision",),
    "remote-ls": ("remote", "ls", "--remote"),
}


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


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_seen_is_what_was_read_and_agreed_to(name, columns, root, monkeypatch):
    monkeypatch.setenv("GPUCACHE_FAKE_DEVICES", "8xH100:9.0")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr("gpucache.directories.jit_level.torch_version", lambda path: None)
    words = COMMANDS[name]
    words += (f"file://{root.parent}/remote",) if name == "remote-ls" else ("--root", str(root))
    seen = seen_here(monkeypatch, columns, *words).replace(root.parent.name, "tables-________")
    file = TABLES / f"{name}-{columns}.txt"
    if os.environ.get("WRITE_TABLES"):
        TABLES.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
    assert seen == file.read_text(encoding="utf-8")
