"""The plug-in under the real Triton on a mount like an object store's: no directory is renamed, nothing linked.

On such a mount Triton's own manager caches, so that ours must: a kernel is compiled once.
"""

from __future__ import annotations

import os
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
    "fsync": "ENOSYS",
}
KINDS = {
    "no renamed directory": {"rename": "EPERM"},
    "gcsfuse": {"rename": "EMFILE", "link": "ENOSYS"},
    "no hard link": {"link": "ENOTSUP"},
    "no lock": {"flock": "ENOSYS"},
    "no mode, no sync": {"chmod": "ENOTSUP", "fsync": "EINVAL"},
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
    behind = root.parent.with_name(f"behind-{root.parent.name}")
    for path in behind.rglob(MANIFEST):
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


def test_two_processes_at_once_compile_a_kernel_once(bare: Path, ranks: Ranks) -> None:
    said = together([ranks(f"triton/{number}", count=2) for number in (0, 1)])
    assert sum(one["compiled"] for one in said) == 2
    assert said[0]["digests"] == said[1]["digests"]
    assert len(entries(bare)) == 2


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
