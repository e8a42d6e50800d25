"""The plug-in under the real Triton on a mount like an object store's: no directory is renamed, nothing linked.

On such a mount Triton's own manager caches, so that ours must: a kernel is compiled once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Command
from support.ranks import Rank, together

from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST

BARE = {
    "rename": "EPERM",
    "link": "ENOTSUP",
    "utime": "EPERM",
    "flock": "ENOSYS",
    "chmod": "EPERM",
    "fsync": "EINVAL",
    "statfs": "ENOSYS",
}
KINDS = {
    "no renamed directory": {"rename": "EPERM"},
    "gcsfuse": {"rename": "EMFILE", "link": "ENOSYS"},
    "no hard link": {"link": "ENOTSUP"},
    "no lock": {"flock": "ENOSYS"},
    "no mode, no sync": {"chmod": "ENOTSUP", "fsync": "ENOSYS"},
    "no deletion (mountpoint-s3 by default)": {**BARE, "unlink": "EPERM"},
    "nothing": BARE,
}

Ranks = Callable[..., Rank]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "mounted" / "root"


@pytest.fixture
def bare(object_store: Callable[..., Path], root: Path) -> Path:
    """A root on a mount that refuses all that an object store may refuse."""
    object_store(root.parent, **BARE)
    return root


def entries(root: Path) -> list[Path]:
    """Every entry of the store; each of them is whole."""
    found = sorted((root / "gpucache/v1/store").glob("*/*"))
    assert all(sound(str(path), True, 0.0) for path in found)
    return found


def grow_old(root: Path) -> None:
    """Let the last use of all be an hour ago: behind the mount, which sets no times."""
    for path in behind(root, root).rglob(MANIFEST):
        used = path.stat().st_mtime - 3600
        os.utime(path, (used, used))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_compiled_once(
    kind: str, object_store: Callable[..., Path], root: Path, ranks: Ranks
) -> None:
    object_store(root.parent, **KINDS[kind])
    first = ranks(count=2).said()
    assert first["compiled"] == 2
    again = ranks(count=2).said()
    assert (again["compiled"], again["digests"]) == (0, first["digests"])
    other = ranks("triton/1", count=2).said()
    assert (other["compiled"], other["digests"]) == (0, first["digests"])
    assert len(entries(root)) == 2


def test_what_the_mount_refuses_is_told_by_provision_and_doctor(bare: Path, here: Command) -> None:
    provisioned = here("provision", "--root", bare)
    assert provisioned.code == 0, provisioned
    said = "(no-directory-rename, no-hard-links, no-set-times, no-flock): `gpucache doctor` tells"
    assert said in provisioned.err
    found = json.loads(here("doctor", "--json", "--root", bare).out)["findings"]
    refused = {"no-directory-rename", "no-hard-links", "no-set-times", "no-flock"}
    assert refused <= {finding["code"] for finding in found}


@pytest.mark.parametrize("devices", [(0, 1), (0, 0)], ids=["two directories", "one directory"])
def test_two_processes_at_once_compile_a_kernel_once(
    devices: tuple[int, int], bare: Path, ranks: Ranks
) -> None:
    said = together([ranks(f"triton/{device}", count=2) for device in devices])
    assert sum(one["compiled"] for one in said) == 2
    assert said[0]["digests"] == said[1]["digests"]
    assert len(entries(bare)) == 2


def test_a_device_directory_alone_may_be_on_such_a_mount(
    object_store: Callable[..., Path], tmp_path: Path, root: Path, ranks: Ranks, here: Command
) -> None:
    """As that of a server that keeps its cache on shared storage, beside a root on a local disk."""
    directory = object_store(tmp_path / "served", **BARE)
    first = ranks(str(directory / "triton"), count=2).said()
    again = ranks(str(directory / "triton"), count=2).said()
    assert (first["compiled"], again["compiled"]) == (2, 0)
    stock = ranks(str(directory / "triton"), count=2, plugin=False).said()
    assert (stock["compiled"], stock["digests"]) == (0, first["digests"])
    assert here("verify", "--root", root).code == 0
    assert len(entries(root)) == 2


SINGLE = """
import sys
from gpucache.triton.manager import DeviceCacheManager
name, key = sys.argv[1], "K" * 52
manager = DeviceCacheManager(key)
assert manager.get_file(name) is None
path = manager.put(b"first", name)
assert open(path, "rb").read() == b"first"
manager = DeviceCacheManager(key)
assert manager.get_file(name) == path
manager.put(b"second", name)  # the first one was no good
path = DeviceCacheManager(key).get_file(name)
print(open(path, "rb").read().decode(), end="")
"""


def test_a_file_that_stands_for_itself_is_kept_and_replaced(
    bare: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    environ = {"GPUCACHE_DIR": str(bare), "TRITON_CACHE_DIR": str(bare / "triton/0")}
    done = python(SINGLE, "note.txt", env=os.environ | environ)
    assert (done.stdout, done.stderr) == ("second", "")
    assert len(list((bare / "gpucache/v1/quarantine").iterdir())) == 2


def test_stock_triton_reads_the_views_and_what_it_left_is_adopted(bare: Path, ranks: Ranks) -> None:
    by_stock = ranks(count=1, plugin=False).said()
    ours = ranks(count=2).said()
    assert (by_stock["compiled"], ours["compiled"]) == (1, 1)
    assert len(entries(bare)) == 2
    again = ranks(count=2, plugin=False).said()
    assert (again["compiled"], again["digests"]) == (0, ours["digests"])


def test_a_use_is_stamped_although_no_time_can_be_set(bare: Path, ranks: Ranks) -> None:
    ranks().said()
    grow_old(bare)
    (manifest,) = (bare / "triton").rglob(MANIFEST)
    assert time.time() - manifest.stat().st_mtime > 3000
    assert ranks().said()["compiled"] == 0
    assert time.time() - manifest.stat().st_mtime < 3000


def test_what_lies_there_is_sound_to_verify_and_counted_and_goes(
    bare: Path, ranks: Ranks, here: Command
) -> None:
    """The views are copies: no hard link can be made."""
    ranks("triton/0", count=2).said()
    ranks("triton/1", count=2).said()
    words = ("--root", bare)
    sound_to_verify = here("verify", *words)
    assert sound_to_verify.code == 0, sound_to_verify
    damaged = entries(bare)[0] / "scaled.cubin"
    data = damaged.read_bytes()
    damaged.write_bytes(b"")
    assert here("verify", *words).code == 1
    assert here("verify", "--repair", *words).code == 0
    assert damaged.read_bytes() == data
    assert here("verify", *words).code == 0
    grow_old(bare)
    assert here("prune", "--max-entries", 1, "--yes", *words).code == 0
    assert len(entries(bare)) == 1
    grow_old(bare)
    assert here("clean", "--yes", *words).code == 0
    assert not entries(bare)
    left = list((bare / "triton").glob("*/*"))
    assert not left
    assert ranks(count=2).said()["compiled"] == 2


def behind(path: Path, root: Path) -> Path:
    """The same file, where nothing is refused."""
    backing = root.parent.with_name(f"behind-{root.parent.name}")
    return backing / path.relative_to(root.parent)


def lose_the_times(root: Path) -> None:
    for path in root.rglob("scaled.ptx"):
        os.utime(behind(path, root), (1e9, 1e9))


def lose_the_manifest(root: Path) -> None:
    (manifest,) = (root / "gpucache/v1/store").rglob(MANIFEST)
    manifest.unlink()


def cut_a_view(root: Path) -> None:
    (cubin,) = (root / "triton/1").rglob("scaled.cubin")
    os.truncate(cubin, 3)


def point_elsewhere(root: Path) -> None:
    (group,) = (root / "triton/0").rglob("__grp__scaled.json")
    group.write_text(group.read_text().replace(str(root), "/elsewhere"))


def copy_a_device_directory(root: Path) -> None:
    shutil.copytree(behind(root / "triton/0", root), behind(root / "triton/2", root))


@pytest.mark.parametrize(
    "damage",
    [lose_the_times, lose_the_manifest, cut_a_view, point_elsewhere, copy_a_device_directory],
    ids=lambda damage: damage.__name__,
)
def test_what_verify_finds_there_is_repaired_at_once(
    damage: Callable[[Path], None], bare: Path, ranks: Ranks, here: Command
) -> None:
    digests = [ranks(f"triton/{device}").said()["digests"] for device in (0, 1)]
    damage(bare)
    assert here("verify", "--root", bare).out
    assert here("verify", "--repair", "--root", bare).code == 0
    clean = here("verify", "--root", bare)
    assert (clean.code, clean.out) == (0, "")
    for device in (0, 1, 2):
        said = ranks(f"triton/{device}").said()
        assert (said["compiled"], said["digests"]) == (0, digests[0])


def test_copies_count_with_all_their_bytes(bare: Path, ranks: Ranks, here: Command) -> None:
    ranks("triton/0", count=2).said()
    ranks("triton/1", count=2).said()
    kept = [bare / "triton", bare / "gpucache/v1/store"]
    on_disk = sum(
        path.stat().st_size for place in kept for path in place.rglob("*") if path.is_file()
    )
    buckets = json.loads(here("du", "--json", "--root", bare).out)["rows"]
    told = {row["name"]: row["physical_bytes"] for row in buckets}
    assert sum(told[name] for name in ("store", "triton/0", "triton/1")) == on_disk


def test_an_entry_is_made_smaller_in_all_its_copies(
    bare: Path, ranks: Ranks, here: Command
) -> None:
    digests = ranks("triton/0").said()["digests"]
    ranks("triton/1").said()
    grow_old(bare)
    slimmed = here("prune", "--keep-binaries", "--yes", "--root", bare)
    assert slimmed.code == 0, slimmed
    assert not list(bare.rglob("*.ptx"))
    assert here("verify", "--root", bare).code == 0
    for device in (0, 1):
        said = ranks(f"triton/{device}").said()
        assert (said["compiled"], said["digests"]) == (0, digests)


def test_what_stock_triton_left_is_made_smaller(bare: Path, ranks: Ranks, here: Command) -> None:
    digests = ranks(plugin=False).said()["digests"]
    for path in behind(bare, bare).rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    slimmed = here("prune", "--keep-binaries", "--yes", "--root", bare)
    assert slimmed.code == 0, slimmed
    assert not list(bare.rglob("*.ptx"))
    assert not list(bare.rglob("*.removed"))
    for plugin in (False, True):
        said = ranks(plugin=plugin).said()
        assert (said["compiled"], said["digests"]) == (0, digests)


def test_the_limit_holds_although_views_are_copies(bare: Path, ranks: Ranks) -> None:
    ranks(count=2).said()
    first = entries(bare)
    grow_old(bare)
    one_entry = sum(path.stat().st_size for path in first[0].iterdir())
    small = {"GPUCACHE_MAX_SIZE": str(4 * one_entry), "GPUCACHE_STAMP_S": "1"}
    assert ranks(count=2, arch=(80,), env=small).said()["compiled"] == 2
    left = [path for path in entries(bare) if path in first]
    assert len(left) < 2
    views = {path.name for path in (bare / "triton/0").iterdir()}
    assert views == {path.name for path in entries(bare)}
