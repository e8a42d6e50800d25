from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree

from gpucache.disk.staging import Staging
from gpucache.layout import paths
from gpucache.report import find_entries, scan
from gpucache.report.entries import Entry
from gpucache.report.inodes import Contents, Inodes
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    Facts,
    entry_path,
    read_manifest,
    single_key,
)
from gpucache.store.publish import link_view, publish_entry

METADATA = json.dumps({"name": "add", "target": {"backend": "cuda", "arch": 90}}).encode()


def key(name: str, beginning: str = "") -> str:
    made = base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")
    return beginning + made[len(beginning) :]


def stock(directory: Path, key: str) -> None:
    """A kernel as Triton's own manager leaves it."""
    path = directory / key
    path.mkdir(parents=True)
    (path / "add.json").write_bytes(METADATA)
    (path / "add.cubin").write_bytes(b"\0" * 64 + key.encode())
    children = {name: f"{path}/{name}" for name in ("add.json", "add.cubin")}
    (path / "__grp__add.json").write_text(json.dumps({"child_paths": children}))


def library(root: Path, key: str, name: str, device: str) -> str:
    """A stored file that stands for itself, with a view; its key in the store."""
    staging = Staging(paths.ours(str(root), "tmp"))
    home = Path(staging.directory())
    (home / name).write_bytes(b"\x7fELF" + name.encode())
    files = {name: (f"{home}/{name}", hashlib.sha256((home / name).read_bytes()).hexdigest())}
    stored = single_key(key, name, "abi")
    facts = Facts(name, None, tag="abi")
    assert publish_entry(str(root), stored, files, facts, staging, repair=False)
    shutil.rmtree(home)
    found = read_manifest(entry_path(str(root), stored))
    assert found is not None
    view = f"{root}/triton/{device}/{key}"
    assert link_view(str(root), entry_path(str(root), stored), view, found[0], repair=False)
    return stored


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a root may have: stored kernels and libraries with views, stock Triton's entries, and damage."""
    root = tmp_path / "root"
    first, second, third, fourth, *_ = tree.make(str(root), 12, 2)
    shutil.rmtree(root / "triton/1" / first)
    stock(root / "triton/1", first)
    stock(root / "triton/1", key("stock", first[:3]))
    stock(root / "triton/0", hashlib.sha256(b"hexadecimal").hexdigest())
    stock(root / "triton/0", base64.urlsafe_b64encode(hashlib.sha256(b"a").digest()).decode()[:43])
    library(root, key("library"), "cuda_utils.so", "0")
    library(root, key("library"), "__triton_launcher.so", "1")
    library(root, first, "beside_a_kernel.so", "2")
    Path(entry_path(str(root), second), MANIFEST).write_text("{}")
    shutil.rmtree(entry_path(str(root), third))
    (root / "triton/0" / fourth / MANIFEST).rename(root / "triton/0" / fourth / CONDEMNED)
    (root / "triton/0" / key("link")).symlink_to(root / "triton/0" / first)
    (root / "triton/0" / key("empty")).mkdir()
    (root / "triton/0" / key("file")).write_bytes(b"")
    return root


def beginnings(root: Path) -> Iterator[str]:
    """What a user may ask for: keys as they are in the store and in device directories, and parts of them."""
    yield from (
        "",
        "A",
        "..",
        "../",
        "tr",
        "gp",
        "no",
        "*",
        "\0a",
        key("link"),
        key("empty"),
        key("file"),
    )
    keys = {entry.key for entry in scan(str(root)).entries}
    keys |= {name for device in (root / "triton").iterdir() for name in os.listdir(device)}
    for name in keys:
        yield from (
            name,
            name + "-",
            name + "x",
            name[:-1],
            name[:50],
            name[:43],
            name[:4],
            name[:2],
        )


def matching(entries: tuple[Entry, ...], asked: str) -> tuple[Entry, ...]:
    exact = [entry for entry in entries if entry.key == asked]
    return tuple(exact or [entry for entry in entries if entry.key.startswith(asked)])


def test_what_is_found_is_what_a_scan_would_say(root):
    entries = scan(str(root)).entries
    asked = list(beginnings(root))
    assert {len(matching(entries, one)) for one in asked} >= {0, 1, 2, 3}
    for one in asked:
        assert find_entries(str(root), one) == matching(entries, one), one


@pytest.mark.parametrize("below", ["triton/0", "triton"])
def test_the_root_may_be_a_directory_of_triton_itself(root, below):
    entries = scan(str(root / below)).entries
    for one in beginnings(root):
        assert find_entries(str(root / below), one) == matching(entries, one), one


def test_a_whole_key_costs_its_own_directories(root, monkeypatch):
    """However many entries there are, and however the key is written: as in the store, or as in the devices."""
    looked: list[str] = []

    def contents(self: Inodes, path: str, *rest: object) -> Contents:
        looked.append(path)
        return real(self, path, *rest)

    real = Inodes.contents
    monkeypatch.setattr(Inodes, "contents", contents)
    for entry in matching(scan(str(root)).entries, key("library")[:10]):
        looked.clear()
        assert find_entries(str(root), entry.key) == (entry,)
        assert {os.path.basename(path)[:52] for path in looked} == {key("library")}
        assert len(looked) == 4


def test_a_root_that_is_not_there_has_nothing(tmp_path):
    for one in ("", "AB", key("any")):
        assert find_entries(str(tmp_path / "none"), one) == ()
