"""Why an entry is not a hit: where a process looks, and what is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from support.ranks import PLUGIN
from support.trees import stock_entry

from gpucache import Device, DeviceCacheRegistry, Snapshot, Status
from gpucache.diagnosis.why_missed import CODES, why_missed
from gpucache.store.manifest import entry_path
from gpucache.upkeep.verify import verify

needs_triton = pytest.mark.usefixtures("triton")


def codes(found):
    assert {one.code for one in found} <= CODES.keys()
    return {(one.code, one.level) for one in found}


@pytest.fixture
def entry(root, one_kernel):
    """The key of a kernel that the real Triton compiled under the plug-in, and the environment that it had."""
    more = {**PLUGIN, "GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton/0")}
    one_kernel.at(root)
    (path,) = (root / "triton/0").glob("*/scaled.json")
    return path.parent.name, more


def asked(entry, root, *, key=None, directory=None, **more):
    """What stands against a hit, but for the Triton, which the process that compiled may have another of."""
    found = why_missed(key or entry[0], str(root), {**entry[1], **more}, directory)
    return codes([one for one in found if one.code != "other-triton"])


@needs_triton
def test_nothing_stands_against_a_hit_and_nothing_is_written(entry, root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert asked(entry, root) == set()
    assert asked(entry, root, key=str(root / "triton/0" / entry[0])) == set()
    assert asked(entry, root, key=f"{root}/gpucache/v1/store/{entry[0][:2]}/{entry[0]}") == set()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@needs_triton
def test_the_store_is_enough(entry, root):
    assert asked(entry, root, TRITON_CACHE_DIR=str(root / "triton/7")) == set()


@needs_triton
@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"GPUCACHE_SHARE": "0"}, "GPUCACHE_SHARE"),
        ({"GPUCACHE_DISABLE": "1"}, "GPUCACHE_DISABLE"),
        ({"TRITON_CACHE_MANAGER": ""}, "TRITON_CACHE_MANAGER"),
        ({"TRITON_CACHE_MANAGER": "other:Manager"}, "TRITON_CACHE_MANAGER"),
    ],
)
def test_a_process_that_does_not_ask_the_store_needs_a_whole_directory(setting, name, entry, root):
    assert asked(entry, root, **setting) == set(), "it has one"
    elsewhere = {**entry[1], **setting, "TRITON_CACHE_DIR": str(root / "triton/7")}
    found = {one.code: one for one in why_missed(entry[0], str(root), elsewhere)}
    assert found["elsewhere"].level == "error"
    assert found["store-unused"].subject == name


@needs_triton
def test_a_fresh_directory_does_not_ask_the_store(entry, root, tmp_path):
    fresh = str(tmp_path / "tmpabcdef78")
    assert asked(entry, root, TRITON_CACHE_DIR=fresh) == {
        ("elsewhere", "error"),
        ("store-unused", "warning"),
    }
    assert asked(entry, root, TRITON_CACHE_DIR=fresh, GPUCACHE_SHARE="1") == set()


@needs_triton
@pytest.mark.parametrize("name", ["TRITON_ALWAYS_COMPILE", "TRITON_KERNEL_OVERRIDE"])
def test_a_setting_that_always_compiles_is_named(name, entry, root):
    assert asked(entry, root, **{name: "1"}) == {("always-compile", "error")}
    assert asked(entry, root, **{name: "0"}) == set()


@needs_triton
def test_a_variable_that_changes_the_key_is_named(entry, root):
    (found,) = (
        one
        for one in why_missed(entry[0], str(root), {**entry[1], "TRITON_DISABLE_LINE_INFO": "0"})
        if one.code != "other-triton"
    )
    assert (found.code, found.subject) == ("environment-differs", "TRITON_DISABLE_LINE_INFO")
    assert "was not set then, and is false here" in found.fact


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@needs_triton
@pytest.mark.parametrize(
    ("name", "damage", "code", "fact"),
    [
        ("scaled.cubin", emptied, "digest-mismatch", "it has 0 bytes, not"),
        ("scaled.cubin", flipped, "digest-mismatch", "and was published as"),
        ("scaled.json", Path.unlink, "file-missing", "it is not there"),
        ("__entry__.json", emptied, "manifest-torn", "it cannot be understood"),
    ],
    ids=["emptied", "flipped", "removed", "manifest"],
)
def test_damage_is_named_with_the_file(name, damage, code, fact, entry, root):
    """The files of a view are those of the store, so both have it."""
    path = root / "triton/0" / entry[0]
    damage(path / name)
    if damage is Path.unlink:
        (root / "gpucache/v1/store" / entry[0][:2] / entry[0] / name).unlink()
    found = [one for one in why_missed(entry[0], str(root), entry[1]) if one.code != "other-triton"]
    assert {(one.code, one.level) for one in found} == {(code, "error")}
    assert len(found) == 2
    assert found[0].subject == str(path / name)
    assert fact in found[0].fact
    assert {one.finding for one in verify(str(root)).findings} == set(found)


@needs_triton
def test_damage_beside_a_whole_copy_is_no_miss(entry, root):
    """It is as bad as for `verify`, and the copy that is taken is named."""
    (root / "triton/0" / entry[0] / "scaled.ptx").unlink()
    assert asked(entry, root) == {("file-missing", "error"), ("taken-elsewhere", "warning")}
    found = {one.code: one for one in why_missed(entry[0], str(root), entry[1])}
    assert found["taken-elsewhere"].subject == entry_path(str(root), entry[0])
    assert [one.finding for one in verify(str(root)).findings] == [found["file-missing"]]
    assert asked(entry, root, GPUCACHE_SHARE="0") == {
        ("file-missing", "error"),
        ("store-unused", "warning"),
    }


def test_what_is_nowhere_is_absent(root):
    (found,) = why_missed("KEY", str(root), {**PLUGIN, "TRITON_CACHE_DIR": f"{root}/triton/0"})
    assert (found.code, found.level, found.subject) == ("absent", "error", "KEY")
    assert f"{root}/triton/0/KEY" in found.fact
    assert f"{root}/gpucache/v1/store/KE/KEY" in found.fact


def test_the_directory_of_a_pinned_device_is_where_it_looks(root):
    record(root, (9, 0))
    stock_entry(root / "triton/0", "K" * 52, triton_version=INSTALLED)
    assert why_missed("K" * 52, str(root), {**SHARED, "GPUCACHE_DEVICE": "GPU-x"}) == ()
    (found,) = why_missed("K" * 52, str(root), {**SHARED, "TRITON_HOME": str(root)})
    assert (found.code, found.level) == ("elsewhere", "error")
    assert f"not in {root}/.triton/cache/{'K' * 52}" in found.fact  # Triton's own default


def record(root, capability):
    device = Device(uuid="GPU-x", index=0, compute_capability=capability)
    DeviceCacheRegistry(
        root, Snapshot(status=Status.OK, source="nvml", devices=(device,)), {}
    ).provision()


INSTALLED = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "3.9.0"
SHARED = {**PLUGIN, "GPUCACHE_SHARE": "1"}


def test_a_kernel_for_another_architecture_is_named(root):
    record(root, (9, 0))
    path = stock_entry(root / "triton/0", "KEY", arch=80, triton_version=INSTALLED)
    (found,) = why_missed(path, str(root), SHARED)
    assert (found.code, found.level) == ("other-architecture", "error")
    assert "made for sm_80; this host has sm_90" in found.fact
    assert (
        why_missed(
            stock_entry(root / "triton/0", "OTHER", triton_version=INSTALLED), str(root), SHARED
        )
        == ()
    )


@needs_triton
@pytest.mark.parametrize("made", ["2.9.1", None])
def test_a_kernel_of_another_triton_is_named(made, root):
    path = stock_entry(root / "triton/0", "KEY", triton_version=made)
    (found,) = why_missed(path, str(root), SHARED)
    assert (found.code, found.level, found.subject) == ("other-triton", "error", "triton")
    assert (made or "a version before 3.3") in found.fact
    assert INSTALLED in found.fact


def test_a_variable_that_was_set_when_it_was_made_is_named(root):
    path = stock_entry(
        root / "triton/0", "KEY", triton_version=INSTALLED, environment={"DISABLE_LLVM_OPT": "true"}
    )
    (found,) = why_missed(path, str(root), SHARED)
    assert (found.code, found.fix) == ("environment-differs", "set DISABLE_LLVM_OPT=true")
    assert why_missed(path, str(root), {**SHARED, "DISABLE_LLVM_OPT": "1"}) == ()


@pytest.mark.parametrize("gone", [False, True], ids=["copied", "moved"])
def test_a_group_that_names_another_place_is_told(gone, root):
    """Stock Triton reads the files there, or compiles again; we read them where they lie."""
    first = Path(stock_entry(root / "triton/0", "KEY", triton_version=INSTALLED))
    shutil.copytree(first, root / "triton/1/KEY")
    if gone:
        shutil.rmtree(first)
    at = str(root / "triton/1/KEY")
    assert codes(why_missed(at, str(root), SHARED)) == {("group-elsewhere", "warning")}
    expected = (
        {("group-elsewhere", "warning"), ("group-gone", "error"), ("store-unused", "warning")}
        if gone
        else {("group-elsewhere", "warning")}
    )
    assert codes(why_missed(at, str(root), {})) == expected


def test_a_compile_that_did_not_end_is_told(root):
    (root / "triton/0/KEY").mkdir(parents=True)
    (found,) = why_missed(str(root / "triton/0/KEY"), str(root), SHARED)
    assert found.code == "stock-incomplete"
    path = Path(stock_entry(root / "triton/0", "CUT"))
    (path / "k.cubin").write_bytes(b"")
    assert ("binary-cut", "error") in codes(why_missed(str(path), str(root), SHARED))


def test_an_entry_that_is_being_removed_is_told(root):
    path = Path(stock_entry(root / "triton/0", "KEY", triton_version=INSTALLED))
    (path / "__entry__.json.removed").touch()
    assert codes(why_missed(str(path), str(root), SHARED)) == {("being-removed", "error")}


def test_a_link_is_followed_and_told(root):
    """As by every process that looks for the key; and one that leads nowhere is as nothing."""
    path = Path(stock_entry(root / "elsewhere", "KEY", triton_version=INSTALLED))
    link = root / "triton/0/KEY"
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    assert ("link", "warning") in codes(why_missed(str(link), str(root), SHARED))
    assert "error" not in {one.level for one in why_missed(str(link), str(root), SHARED)}
    shutil.rmtree(path)
    assert codes(why_missed(str(link), str(root), SHARED)) == {("absent", "error")}


def test_a_value_that_makes_no_sense_is_told(root):
    path = stock_entry(root / "triton/0", "KEY", triton_version=INSTALLED)
    found = why_missed(path, str(root), {**SHARED, "GPUCACHE_TRUST_UIDS": "ada"})
    assert codes(found) == {("bad-value", "error")}


def test_a_directory_that_everybody_may_write_is_told(root):
    path = stock_entry(root / "triton/0", "KEY", triton_version=INSTALLED)
    (root / "triton/0").chmod(0o777)
    assert codes(why_missed(path, str(root), SHARED)) == {("unsafe-directory", "error")}


def test_a_library_is_found_under_its_longer_key(root, monkeypatch):
    """Files that stand for themselves are stored under the key and what else must be equal."""
    from gpucache.triton.manager import DeviceCacheManager

    monkeypatch.setattr("gpucache.triton.manager._locations", {})
    for name, value in {
        "GPUCACHE_DIR": str(root),
        "TRITON_CACHE_DIR": str(root / "triton/0"),
    }.items():
        monkeypatch.setenv(name, value)
    key = "K" * 52
    DeviceCacheManager(key).put(b"library", "cuda_utils.so")
    shutil.rmtree(root / "triton/0", ignore_errors=True)
    environ = {**SHARED, "TRITON_CACHE_DIR": str(root / "triton/0")}
    assert why_missed(key, str(root), environ) == ()
    (stored,) = (root / "gpucache/v1/store/KK").iterdir()
    assert why_missed(str(stored), os.path.relpath(root), environ) == ()
