"""An entry knows its key: under another name it is no hit, and an old manifest without a key is looked into once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from support.digests import digests_read
from support.launches import another_process, kernel, launched

from gpucache.layout.keys import view_key
from gpucache.report import scan
from gpucache.store.manifest import MANIFEST, entry_path, read_manifest, single_key
from gpucache.triton.manager import DeviceCacheManager
from gpucache.upkeep.verify import verify

LIBRARY = f"launcher{sysconfig.get_config_var('EXT_SUFFIX')}"
Mount = Callable[..., Path]


FIRST, FILES = kernel("first")
SECOND, OTHERS = kernel("second")


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process caches in ``triton/0``."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)


def in_store(root: Path, key: str) -> Path:
    return Path(entry_path(str(root), key))


def renamed(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def forgetful(directory: Path) -> None:
    """Take the key out of a manifest, whatever names it has: as an older gpucache has written it."""
    path = directory / MANIFEST
    said = json.loads(path.read_bytes())
    assert said.pop("key", None) is not None
    stamp = path.stat()
    path.write_text(json.dumps(said))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def key_in(directory: Path) -> str | None:
    found = read_manifest(str(directory))
    assert found is not None
    return found[0].key


# ---- under another name


def moved_in_the_store(root: Path) -> None:
    renamed(in_store(root, FIRST), in_store(root, SECOND))


def moved_in_a_device_directory(root: Path) -> None:
    renamed(root / "triton/0" / FIRST, root / "triton/0" / SECOND)


def moved_in_both(root: Path) -> None:
    moved_in_the_store(root)
    moved_in_a_device_directory(root)


def copied_over_another(root: Path) -> None:
    launched(SECOND, OTHERS)
    shutil.rmtree(root / "triton/0" / SECOND)
    moved_in_both(root)


MOVES = [moved_in_the_store, moved_in_a_device_directory, moved_in_both, copied_over_another]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("old", [False, True], ids=["with a key", "without one"])
def test_a_kernel_under_another_name_is_not_served(old, move, root):
    launched(FIRST, FILES)
    if old:
        forgetful(in_store(root, FIRST))
    move(root)
    assert launched(SECOND, OTHERS) == (False, OTHERS)
    assert launched(SECOND, OTHERS) == (True, OTHERS)
    launched(FIRST, FILES)
    assert launched(FIRST, FILES) == (True, FILES)
    assert not verify(str(root)).findings


@pytest.mark.parametrize("move", MOVES)
def test_a_kernel_under_another_name_is_found_and_repaired(move, root):
    launched(FIRST, FILES)
    move(root)
    codes = {one.finding.code for one in verify(str(root)).findings}
    assert "key-mismatch" in codes
    assert not verify(str(root), repair=True).unrepaired
    assert not verify(str(root)).findings
    assert launched(SECOND, OTHERS)[1] == OTHERS
    assert launched(FIRST, FILES)[1] == FILES


def test_a_listing_tells_of_an_entry_under_another_name(root):
    launched(FIRST, FILES)
    moved_in_the_store(root)
    assert [finding.code for finding in scan(str(root)).findings] == ["key-mismatch"]


def test_a_view_under_another_name_is_not_made_the_entry_again(root):
    """The repair of an entry takes its files from a view only where that is of the same key."""
    launched(SECOND, OTHERS)
    launched(FIRST, FILES)
    moved_in_a_device_directory(root)
    (in_store(root, SECOND) / "add.ptx").write_bytes(b"")
    verify(str(root), repair=True)
    assert launched(SECOND, OTHERS) == (False, OTHERS)


@pytest.mark.parametrize("old", [False, True], ids=["with a key", "without one"])
def test_a_library_under_another_files_name_is_not_served(old, root):
    DeviceCacheManager(FIRST).put(b"of the first", LIBRARY)
    source = in_store(root, single_key(FIRST, LIBRARY, ""))
    if old:
        forgetful(source)
    renamed(source, in_store(root, single_key(FIRST, f"other-{LIBRARY}", "")))
    shutil.rmtree(root / "triton")
    manager = DeviceCacheManager(FIRST)
    assert manager.get_file(f"other-{LIBRARY}") is None
    path = manager.put(b"other", f"other-{LIBRARY}")
    assert Path(path).read_bytes() == b"other"
    assert Path(DeviceCacheManager(FIRST).get_file(f"other-{LIBRARY}")).read_bytes() == b"other"


@pytest.mark.parametrize("device", [False, True], ids=["in the store", "in a device directory"])
def test_a_library_under_another_key_is_not_served(device, root):
    DeviceCacheManager(FIRST).put(b"of the first", LIBRARY)
    renamed(
        in_store(root, single_key(FIRST, LIBRARY, "")),
        in_store(root, single_key(SECOND, LIBRARY, "")),
    )
    if device:
        renamed(root / "triton/0" / FIRST, root / "triton/0" / SECOND)
    else:
        shutil.rmtree(root / "triton")
    assert {one.finding.code for one in verify(str(root)).findings} == {"key-mismatch"}
    manager = DeviceCacheManager(SECOND)
    assert manager.get_file(LIBRARY) is None
    assert Path(manager.put(b"of the second", LIBRARY)).read_bytes() == b"of the second"
    assert Path(DeviceCacheManager(SECOND).get_file(LIBRARY)).read_bytes() == b"of the second"
    assert not verify(str(root)).findings


# ---- manifests of older versions


def test_each_directory_says_its_key(root):
    launched(FIRST, FILES)
    DeviceCacheManager(SECOND).put(b"library", LIBRARY)
    found = [*root.glob("gpucache/v1/store/*/*"), *root.glob("triton/0/*")]
    assert {directory.name: key_in(directory) for directory in found} == {
        directory.name: view_key(directory.name) for directory in found
    }
    assert len(found) == 4


def test_what_older_versions_read_is_still_there(root):
    """They refuse another version, and pass over what they do not know."""
    launched(FIRST, FILES)
    said = json.loads((in_store(root, FIRST) / MANIFEST).read_bytes())
    assert said.pop("key") == FIRST
    assert said["version"] == 1
    older = "version files kernel group target triton_version compile_s tag origin"
    assert set(said) == set(older.split())


def test_a_kernel_of_an_older_version_is_a_hit_and_then_says_its_key(root, monkeypatch):
    launched(FIRST, FILES)
    entry, view = in_store(root, FIRST), root / "triton/0" / FIRST
    forgetful(entry)
    assert key_in(view) is None
    assert launched(FIRST, FILES) == (True, FILES)
    assert (key_in(entry), key_in(view)) == (FIRST, FIRST)
    assert (entry / MANIFEST).samefile(view / MANIFEST), "a stamp on one is a stamp on all"
    read = digests_read(monkeypatch)
    assert launched(FIRST, FILES) == (True, FILES)
    assert not read
    assert not list(root.rglob("tmp.gpucache-*"))
    assert not list(root.glob("gpucache/v1/quarantine/*"))
    assert not verify(str(root)).findings


def test_a_second_view_of_an_older_version_is_led_to_the_same_manifest(root, monkeypatch):
    launched(FIRST, FILES)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/1"))
    launched(FIRST, FILES)
    forgetful(in_store(root, FIRST))
    for device in ("0", "1"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton" / device))
        assert launched(FIRST, FILES) == (True, FILES)
        view = root / "triton" / device / FIRST
        assert (view / MANIFEST).samefile(in_store(root, FIRST) / MANIFEST)


def test_what_an_older_version_publishes_meanwhile_is_shared(root):
    """A rolling upgrade: only the view was made by the older one, or only the entry."""
    launched(FIRST, FILES)
    entry, view = in_store(root, FIRST), root / "triton/0" / FIRST
    said = json.loads((view / MANIFEST).read_bytes())
    del said["key"]
    (view / MANIFEST).unlink()
    (view / MANIFEST).write_text(json.dumps(said))
    assert launched(FIRST, FILES) == (True, FILES)
    assert (view / MANIFEST).samefile(entry / MANIFEST)
    (entry / MANIFEST).unlink()
    (entry / MANIFEST).write_text(json.dumps(said))
    shutil.rmtree(view)
    assert launched(FIRST, FILES) == (True, FILES)
    assert (key_in(entry), key_in(view)) == (FIRST, FIRST)


def test_a_library_of_an_older_version_is_a_hit_and_then_says_its_key(root):
    DeviceCacheManager(FIRST).put(b"library", LIBRARY)
    entry = in_store(root, single_key(FIRST, LIBRARY, ""))
    forgetful(entry)
    path = DeviceCacheManager(FIRST).get_file(LIBRARY)
    assert path == str(root / "triton/0" / FIRST / LIBRARY)
    assert (key_in(entry), key_in(entry)) == (FIRST, FIRST)
    assert not verify(str(root)).findings


def test_a_damaged_kernel_of_an_older_version_is_compiled_again(root):
    launched(FIRST, FILES)
    entry = in_store(root, FIRST)
    forgetful(entry)
    before = (entry / "add.ptx").stat()
    (entry / "add.ptx").write_bytes(bytes(before.st_size))
    os.utime(entry / "add.ptx", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert launched(FIRST, FILES) == (False, FILES)


@pytest.mark.root
def test_a_kernel_of_an_older_version_on_a_read_only_disk_is_read_once(root, mount, monkeypatch):
    launched(FIRST, FILES)
    forgetful(in_store(root, FIRST))
    mount(root, "--bind", str(root))
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
    another_process(monkeypatch)
    read = digests_read(monkeypatch)
    assert launched(FIRST, FILES) == (True, FILES)
    once = len(read)
    assert once
    assert launched(FIRST, FILES) == (True, FILES)
    assert len(read) == once


def test_the_real_triton_is_never_given_another_kernel(ranks, root, triton):
    """Each of two kernels is put in the place of the other, in the store and in the device directory."""
    first = ranks(count=2).said()
    for parent in ("gpucache/v1/store/*", "triton/0"):
        one, two = sorted(root.glob(f"{parent}/*"), key=lambda path: path.name)
        spare = root / "spare"
        one.rename(spare)
        two.rename(one)
        spare.rename(two)
    again = ranks(count=2).said()
    assert (again["compiled"], again["digests"]) == (2, first["digests"])
    assert ranks(count=2).said()["compiled"] == 0
