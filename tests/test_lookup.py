"""The check of a hit where times are coarse or nothing can be written: an image, an archive, a FAT disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.digests import digests_read
from support.trees import KERNEL, KEY, Cache, set_used

from gpucache.store import lookup
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, is_rounded
from gpucache.store.recency import boot_time
from gpucache.upkeep.verify import verify

Mount = Callable[..., Path]
SECOND_NS = 1_000_000_000


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    lookup._checked.clear()
    yield
    lookup._checked.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An entry and its view, used within this boot."""
    cache = Cache(tmp_path)
    assert cache.publish()
    assert cache.link()
    return cache


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of which digests were made."""
    return digests_read(monkeypatch)


def coarse(root: Path, seconds: int = 1) -> None:
    """Give every file a time in whole seconds, as an archive keeps it."""
    for path in root.rglob("*"):
        found = path.lstat()
        time_ns = found.st_mtime_ns // (seconds * SECOND_NS) * (seconds * SECOND_NS)
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


@pytest.mark.parametrize("seconds", [1, 2], ids=["seconds", "even seconds"])
def test_times_in_whole_seconds_are_the_published_ones(seconds, cache, read):
    coarse(cache.root, seconds)
    before = (cache.view / MANIFEST).stat()
    for directory in (cache.entry, cache.view):
        assert sound(str(directory), False, 0.0)
    assert not read
    assert (cache.view / MANIFEST).stat().st_ino == before.st_ino, "nothing is written anew"
    assert not verify(str(cache.root)).findings


@pytest.mark.parametrize("off_ns", [SECOND_NS * 2, -SECOND_NS], ids=["older", "newer"])
def test_another_second_is_another_time(off_ns, cache, read):
    coarse(cache.root)
    path = cache.view / "add.ptx"
    time_ns = path.stat().st_mtime_ns - off_ns
    os.utime(path, ns=(time_ns, time_ns))
    assert sound(str(cache.view), False, 0.0)
    assert read


@pytest.mark.parametrize(
    ("found_ns", "published_ns", "same"),
    [
        (7 * SECOND_NS, 7 * SECOND_NS + 1, True),
        (7 * SECOND_NS, 8 * SECOND_NS - 1, True),
        (7 * SECOND_NS, 8 * SECOND_NS, False),
        (7 * SECOND_NS, 7 * SECOND_NS - 1, False),
        (6 * SECOND_NS, 8 * SECOND_NS - 1, True),
        (6 * SECOND_NS, 8 * SECOND_NS, False),
        (7 * SECOND_NS + 1, 7 * SECOND_NS + 2, False),
        (7 * SECOND_NS + 5 * 10**8, 7 * SECOND_NS + 6 * 10**8, False),
        (-3 * SECOND_NS, -3 * SECOND_NS + 1, True),
    ],
)
def test_a_time_is_rounded_down_to_the_second_or_to_two(found_ns, published_ns, same):
    assert is_rounded(found_ns, published_ns) is same


def test_a_file_that_is_written_anew_within_the_second_is_looked_into(cache):
    """Where times are fine, its time has nanoseconds."""
    coarse(cache.root)
    path = cache.view / "add.ptx"
    second_ns = path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(second_ns, second_ns + 4_000_000))
    assert sound(str(cache.view), False, 0.0) is None


# ---- where nothing can be written


class Image:
    """A root that can only be read, whose entries were used before this machine started."""

    def __init__(self, cache: Cache, root: Path) -> None:
        self.root = root
        self.entry = root / cache.entry.relative_to(cache.root)
        self.view = root / cache.view.relative_to(cache.root)


def squashed(cache: Cache, mount: Mount) -> Path:
    if shutil.which("mksquashfs") is None:
        pytest.skip("needs mksquashfs: apt-get install squashfs-tools")
    image = cache.base / "image.squashfs"
    command = ["mksquashfs", cache.root, image, "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        return mount(cache.root, "-o", "loop,ro", str(image))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs a loop device and squashfs: {error}")


def bound(cache: Cache, mount: Mount) -> Path:
    point = mount(cache.base / "mounted", "--bind", str(cache.root))
    subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
    return point


def bound_with_other_times(cache: Cache, mount: Mount) -> Path:
    for name in KERNEL:
        os.utime(cache.entry / name, (1_000_000, 1_000_000))
    return bound(cache, mount)


@pytest.fixture(params=[squashed, bound, bound_with_other_times])
def image(request: Any, cache: Cache, mount: Mount) -> Image:
    set_used(cache.entry, boot_time() - 3600)
    return Image(cache, request.param(cache, mount))


@pytest.mark.root
def test_a_read_only_entry_is_read_once_a_process(image, read):
    for directory in (image.entry, image.view):
        assert sound(str(directory), False, boot_time())
        assert len(read) == len(KERNEL)
        for _ in range(3):
            assert sound(str(directory), False, boot_time())
        assert len(read) == len(KERNEL)
        read.clear()


@pytest.mark.root
@pytest.mark.parametrize("image", [squashed, bound], indirect=True)
def test_a_read_only_cache_gives_no_finding(image):
    assert not verify(str(image.root)).findings


@pytest.mark.root
@pytest.mark.parametrize("image", [bound], indirect=True)
def test_what_changes_below_a_read_only_mount_is_read_again(cache, image):
    """Whoever can write to it, by another mount, may keep size and time."""
    assert sound(str(image.view), False, boot_time())
    path = cache.view / "add.ptx"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sound(str(image.view), False, boot_time()) is None


def test_a_use_that_cannot_be_stamped_costs_one_look_a_process(cache, read, monkeypatch):
    """Another user's file, or a file server that keeps no times."""
    set_used(cache.entry, boot_time() - 3600)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    for _ in range(3):
        assert sound(str(cache.view), False, boot_time())
    assert len(read) == len(KERNEL)


def test_always_means_every_time(cache, read):
    for _ in range(3):
        assert sound(str(cache.view), True, 0.0)
    assert len(read) == 3 * len(KERNEL)


def test_another_manifest_is_another_entry(cache, monkeypatch):
    """What was read once proves nothing of other digests."""
    set_used(cache.entry, boot_time() - 3600)
    monkeypatch.setattr(os, "utime", lambda *_, **__: None)
    assert sound(str(cache.view), False, boot_time())
    path = cache.view / MANIFEST
    right = hashlib.sha256(KERNEL["add.ptx"]).hexdigest()
    said = path.read_text()
    assert right in said
    path.unlink()
    path.write_text(said.replace(right, "0" * 64))
    assert sound(str(cache.view), False, boot_time() + 10**6) is None
    assert cache.view.name == KEY
