"""What is known of pulls: how much they have brought, and how much of that was used."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support.known_kernels import key_of, launch

from gpucache.archive.collect import collect
from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.archive.statement import Statement
from gpucache.archive.unpack import Unpacked
from gpucache.archive.write import write_pack
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.layout import paths
from gpucache.store import pulled
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, Facts, entry_path
from gpucache.store.publish import publish_entry
from gpucache.store.pulled import (
    Pulled,
    PulledEntry,
    PulledUse,
    note_pulled,
    pulls,
    use_of_pull,
    use_of_pulled,
)
from gpucache.transfer.bring import bring
from gpucache.triton import manager

KEYS = [letter * 52 for letter in "ABC"]
FACT = PulledEntry("cuda:90", "3.9.0")


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in ("tmp", "store"):
        Path(paths.ours(str(tmp_path), name)).mkdir(parents=True)
    return str(tmp_path)


def publish(root: str, used: float, keys=KEYS) -> None:
    """Publish entries as a pull does, and note it."""
    staging = Staging(paths.ours(root, "tmp"))
    for key in keys:
        path = staging.write("add.json", b"{}", lambda _: True)
        files = {
            "add.json": (path, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
        }
        assert publish_entry(root, key, files, Facts("add", "add.json"), staging, False, used)
    note_pulled(root, Pulled("llama", 3, used, dict.fromkeys(keys, FACT)))


def test_nothing_was_used_of_what_was_just_pulled(root):
    publish(root, use_of_pull(time.time()))
    assert use_of_pulled(root) == PulledUse(3, 0, 0)


def test_the_first_use_counts_however_soon_it_comes(root):
    """The use is stamped as each use is, by a process whose look is that of a hit."""
    publish(root, use_of_pull(time.time()))
    for _ in range(2):
        assert sound(entry_path(root, KEYS[0]), False, 0.0)
    assert use_of_pulled(root) == PulledUse(3, 1, 0)


def test_what_was_removed_is_told_apart(root):
    publish(root, use_of_pull(time.time()))
    shutil.rmtree(entry_path(root, KEYS[1]))
    assert use_of_pulled(root) == PulledUse(3, 0, 1)


def test_an_entry_that_two_pulls_have_made_counts_once_from_the_last(root):
    first = use_of_pull(time.time() - 3600)
    publish(root, first)
    assert sound(entry_path(root, KEYS[0]), False, 0.0)
    shutil.rmtree(entry_path(root, KEYS[0]))
    publish(root, use_of_pull(time.time()), KEYS[:1])
    assert use_of_pulled(root) == PulledUse(3, 0, 0)


def test_on_a_disk_of_whole_seconds_nothing_counts_as_used_by_rounding(root):
    used = use_of_pull(time.time())
    publish(root, used)
    for key in KEYS:
        os.utime(f"{entry_path(root, key)}/{MANIFEST}", (int(used), int(used)))
    assert use_of_pulled(root).used == 0


def test_the_oldest_pull_is_forgotten(root, monkeypatch):
    monkeypatch.setattr(pulled, "MOST_PULLS", 2)
    for number in range(4):
        note_pulled(root, Pulled("llama", number, 1.0, {KEYS[0]: FACT}))
    assert [pull.number for pull in pulls(root)] == [2, 3]


def test_a_pull_that_has_made_nothing_is_not_noted(root):
    note_pulled(root, Pulled("llama", 1, 1.0, {}))
    assert list(pulls(root)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"version": 2}',
        '{"version": 1, "name": 1, "number": 1, "used": 1.0, "entries": {}}',
        '{"version": 1, "name": "a", "number": 1, "used": 1.0, "entries": {"A": ["\\u001b", null]}}',
        '{"version": 1, "name": "a", "number": 1, "used": 1.0, "entries": {"A": [null]}}',
        '{"version": 1, "name": "a", "number": 1, "used": NaN, "entries": []}',
    ],
)
def test_what_makes_no_sense_is_passed_over(root, text):
    note_pulled(root, Pulled("llama", 1, 1.0, {KEYS[0]: FACT}))
    Path(paths.ours(root, "pulled", f"{'f' * 20}.json")).write_text(text)
    assert [pull.name for pull in pulls(root)] == ["llama"]
    assert use_of_pulled(root) == PulledUse(1, 0, 1)


def test_a_key_that_leads_out_of_the_store_is_no_key(root):
    said = {"version": 1, "name": "a", "number": 1, "used": 1.0, "entries": {"../x": [None, None]}}
    note_pulled(root, Pulled("llama", 1, 1.0, {KEYS[0]: FACT}))
    Path(paths.ours(root, "pulled", f"{'f' * 20}.json")).write_text(json.dumps(said))
    assert use_of_pulled(root).entries == 1


def test_nothing_is_known_of_a_link(root, tmp_path):
    note_pulled(root, Pulled("llama", 1, 1.0, {KEYS[0]: FACT}))
    os.rename(paths.ours(root, "pulled"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", paths.ours(root, "pulled"))
    assert list(pulls(root)) == []


def test_stats_tells_of_pulls(here, root):
    publish(root, use_of_pull(time.time()))
    assert sound(entry_path(root, KEYS[0]), False, 0.0)
    shutil.rmtree(entry_path(root, KEYS[1]))
    said = here("stats", "--root", root)
    assert said.err.splitlines() == ["pulled 3, used 1 of them since; 1 more are removed by now"]
    asked = here("stats", "--root", root, "--json").json
    assert asked["pulled"] == {"entries": 3, "used": 1, "gone": 1}


# ---- by packs


@pytest.fixture
def packed(tmp_path_factory, monkeypatch) -> bytes:
    """A pack of three kernels, signed by nobody."""
    root = str(tmp_path_factory.mktemp("other") / "root")
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", root)
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/0")
    for seed in "abc":
        assert launch(key_of(seed)) == "compiled"
    collected = [collect(entry_path(root, key_of(seed)), None) for seed in "abc"]
    opened = {one.entry.key: one.opened for one in collected}
    out = io.BytesIO()
    statement = Statement("llama", 3, tuple(one.entry for one in collected))
    write_pack(out, statement, None, lambda entry, file: opened[entry.key](file))
    return out.getvalue()


def pull(root: str, packed: bytes) -> Unpacked:
    with PackReader(io.BytesIO(packed), anyone, source_name="pack") as reader:
        return bring(reader, root, Trust(), chosen=lambda _: True)


def test_what_a_pack_brings_is_noted_and_each_use_tells(root, packed, monkeypatch):
    assert len(pull(root, packed).made) == 3
    assert use_of_pulled(root) == PulledUse(3, 0, 0)
    monkeypatch.setattr(manager, "_locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", root)
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{root}/triton/0")
    assert launch(key_of("a")) == "hit"
    assert use_of_pulled(root) == PulledUse(3, 1, 0)
    (noted,) = pulls(root)
    assert noted.entries[key_of("a")] == FACT


def test_to_be_pulled_again_is_no_use(root, packed):
    """Each start of a container pulls, and would make all of the pack look used."""
    pull(root, packed)
    again = pull(root, packed)
    assert (len(again.made), len(again.there)) == (0, 3)
    assert use_of_pulled(root) == PulledUse(3, 0, 0)
    assert len(list(pulls(root))) == 1
