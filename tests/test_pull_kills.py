"""A pull that is killed at any system call leaves a whole store and waiters that go on, and the next one goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.launches import kernel
from support.pulled_packs import Packs, pull_files
from support.trees import aged

from gpucache.archive.signature import anyone
from gpucache.disk.vetting import Trust
from gpucache.errors import ProvisionError
from gpucache.layout.paths import ours
from gpucache.remote.awaited import Awaited
from gpucache.remote.opening import open_remote
from gpucache.remote.pulls import pulling
from gpucache.remote.url import RemoteUrl
from gpucache.report.cache_report import scan
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.transfer.bring import make_ready
from gpucache.transfer.pull import PulledPack, pull_pack
from gpucache.transfer.seen_numbers import seen_number
from gpucache.upkeep.verify import verify

SEEDS = ["one", "two", "three"]
PULL = (
    SCRIPT
    + """
from gpucache.archive.signature import anyone
from gpucache.disk.vetting import Trust
from gpucache.remote.opening import open_remote
from gpucache.remote.pulls import pulling
from gpucache.remote.url import RemoteUrl
from gpucache.transfer.pull import pull_pack
import gpucache.remote.shared_directory, gpucache.disk.lock_token, gpucache.disk.capabilities, tempfile, zstandard
tempfile.gettempdir()  # which tries whether it can be written
root, url = sys.argv[2:]
remote = open_remote(RemoteUrl.parse(url), {})
mark("begin")
with pulling(root, (url, "llama"), "the pull of llama", 30.0, print) as held:
    pull_pack(remote, "llama", root, Trust(), anyone, pull=held)
mark("end")
os._exit(0)
"""
)
"""Pulls a pack as `gpucache pull` does: begins, tells the keys, unpacks, notes, ends."""


def pulled(root: str, url: str) -> PulledPack:
    with pulling(root, (url, "llama"), "the pull of llama", 30.0, print) as held:
        assert held is not None
        remote = open_remote(RemoteUrl.parse(url), {})
        return pull_pack(remote, "llama", root, Trust(), anyone, pull=held)


def test_killed_at_any_system_call_the_store_is_whole_and_the_next_pull_goes_on(every_call):
    def start(home: Path) -> list[object]:
        Packs(home / "remote", None).put("llama", SEEDS, number=7)
        make_ready(str(home / "root"), Trust())
        return [home / "root", f"file://{home}/remote"]

    def check(home: Path, line: str) -> None:
        root = str(home / "root")
        for path in Path(root).glob("gpucache/v1/store/*/*"):
            if (path / MANIFEST).exists():
                assert sound(str(path), True, 0.0) is not None, line
        for seed in SEEDS:
            assert not Awaited(ours(root, "locks"), kernel(seed)[0], 60.0).is_coming(), line
        assert seen_number(root, "llama") in (None, 7), line
        aged(Path(root))
        done = pulled(root, f"file://{home}/remote")
        assert len(done.unpacked.made) + len(done.unpacked.there) == 3, line
        for seed in SEEDS:
            assert sound(entry_path(root, kernel(seed)[0]), True, 0.0) is not None, line
        assert pull_files(home / "root") == [], line
        assert seen_number(root, "llama") == 7, line
        found = verify(root).findings
        assert not found, (line, found)
        dead = {stray.kind for stray in scan(root).strays if stray.dead}
        assert dead <= {"staging"}, (line, dead)

    every_call.killed_everywhere(PULL, start, check, least=30)


def test_a_full_disk_ends_the_pull_and_the_next_one_goes_on(mount, tmp_path):
    large = [os.urandom(2000).hex() for _ in range(4)]  # 400 KB each
    packs = Packs(tmp_path / "remote", None)
    packs.put("llama", large)
    full = mount(tmp_path / "full", "-t", "tmpfs", "-o", "size=1m", "none")
    root = str(full / "root")
    make_ready(root, Trust())
    with pytest.raises(ProvisionError):
        pulled(root, packs.url)
    assert pull_files(full / "root") == []
    subprocess.run(["mount", "-o", "remount,size=16m", full], check=True)
    assert len(pulled(root, packs.url).unpacked.made) == 4


def test_a_disk_that_others_fill_in_the_middle_keeps_what_was_whole(mount, tmp_path, monkeypatch):
    """The room was there when the pull began."""
    from gpucache.archive import room

    monkeypatch.setattr(room, "check", lambda root, entries: None)
    large = [os.urandom(2000).hex() for _ in range(4)]
    packs = Packs(tmp_path / "remote", None)
    packs.put("llama", large)
    full = mount(tmp_path / "full", "-t", "tmpfs", "-o", "size=1m", "none")
    root = str(full / "root")
    make_ready(root, Trust())
    with pytest.raises(OSError):
        pulled(root, packs.url)
    there = [sound(entry_path(root, kernel(seed)[0]), True, 0.0) for seed in large]
    assert 0 < sum(found is not None for found in there) < 4
    subprocess.run(["mount", "-o", "remount,size=16m", full], check=True)
    done = pulled(root, packs.url)
    assert len(done.unpacked.made) + len(done.unpacked.there) == 4
