"""What other users read of a root that they may read is used, as access times tell; `prune` and the limit heed them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.trees import planned

from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.disk.staging import Staging
from gpucache.disk.vetting import Trust
from gpucache.report.cache_report import scan
from gpucache.store.counting import last_uses
from gpucache.store.fallback import copy_entry
from gpucache.store.fallback_entry import Fallback
from gpucache.store.limit import Limit
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.store.readers import last_read_ns
from gpucache.triton.location import locate
from gpucache.upkeep.verify import verify

KERNELS = {seed: kernel(seed) for seed in ("first", "second", "third")}
DAY_S = 86_400
LONG_AGO = time.time() - 30 * DAY_S

Made = Callable[[str], Path]


@pytest.fixture
def made(mount: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A root in which nothing was used for 30 days, on a mount with access times as they are by default."""
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "relatime,mode=0755", "none")

    def root(sharing: str) -> Path:
        path = disk / sharing
        registry = DeviceCacheRegistry(str(path), environ={"GPUCACHE_FAKE_DEVICES": "1"})
        registry.provision(sharing=sharing)
        monkeypatch.setenv("GPUCACHE_DIR", str(path))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(path / "triton/0"))
        another_process(monkeypatch)
        for key, files in KERNELS.values():
            launched(key, files)
        for file in path.rglob("*"):
            os.utime(file, (LONG_AGO, LONG_AGO))
        return path

    return root


def read_by_another(root: Path, seed: str) -> None:
    """Have another root copy an entry, as a reader's does."""
    own = root.parent / "reader"
    locate(None, {"GPUCACHE_DIR": str(own)})
    staging = Staging(str(own / "gpucache/v1/tmp"))
    fallback = Fallback.at(str(root), Trust())
    key = KERNELS[seed][0]
    assert copy_entry(fallback, str(own), key, staging, repair=True).did == "hit"


def removed(root: Path) -> set[str]:
    """The kernels that `prune` would remove as not used for a week."""
    seeds = {key: seed for seed, (key, _) in KERNELS.items()}
    plan = planned(root, max_age_s=7 * DAY_S)
    return {seeds[entry.key] for entry in plan.removing}


def test_prune_spares_what_a_reader_has_copied(made):
    root = made("read")
    read_by_another(root, "second")
    assert removed(root) == {"first", "third"}


def test_in_a_private_root_access_times_say_nothing(made):
    """Nobody else can read it, and a backup must not keep entries alive."""
    root = made("private")
    read_by_another(root, "second")
    assert removed(root) == set(KERNELS)


def test_the_limit_evicts_it_last(made):
    root = made("read")
    read_by_another(root, "first")
    uses = {Path(use.path).name: use for use in last_uses(str(root))}
    assert uses[KERNELS["first"][0]].used > time.time() - DAY_S
    location = locate(str(root / "triton/0"), dict(os.environ))
    sizes = sum(file.stat().st_size for file in root.glob("gpucache/v1/store/*/*/*"))
    limit = Limit(str(root), location.locks, sizes // 2, 10.0)
    limit._put(0)
    limit.turn()
    there = {
        seed for seed, (key, _) in KERNELS.items() if Path(entry_path(str(root), key)).exists()
    }
    assert there == {"first"}


def test_no_command_of_the_owners_is_a_use(made):
    root = made("read")
    scan(str(root))
    verify(str(root))
    for key, _ in KERNELS.values():
        read = last_read_ns(entry_path(str(root), key)) / 1e9
        assert read == pytest.approx(LONG_AGO, abs=1)
    assert removed(root) == set(KERNELS)


def test_a_reader_leaves_nothing_but_access_times(made):
    root = made("read")
    manifest = Path(entry_path(str(root), KERNELS["first"][0])) / MANIFEST
    before = manifest.stat()
    read_by_another(root, "first")
    after = manifest.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
