"""What `doctor` tells of other JIT caches: hangs, locks of killed builds, damaged files, leftovers, the limit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.jit_trees import DAY, HOUR, aged, unit, whole_library, wrote, wrote_bytes
from support.users import ADA, acting_as

from gpucache.diagnosis import jit_checks
from gpucache.diagnosis.doctor import CODES, examine
from gpucache.directories.registry import DeviceCacheRegistry
from gpucache.findings import Finding

OURS = {code for code in CODES if code.startswith("jit-")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    DeviceCacheRegistry(str(root), environ={"GPUCACHE_FAKE_DEVICES": "1"}).provision()
    return root


def look(root: Path, **more: str) -> list[Finding]:
    found = examine(str(root), {"GPUCACHE_FAKE_DEVICES": "1", **more}).findings
    return [finding for finding in found if finding.code in OURS]


def told(found: list[Finding], code: str, level: str) -> Finding:
    """The one finding of this code."""
    (finding,) = [finding for finding in found if finding.code == code]
    assert finding.level == level
    assert all(finding.as_json().values())
    return finding


def silent(found: list[Finding], *unwanted: str) -> None:
    assert not set(unwanted) - OURS
    assert not set(unwanted) & {finding.code for finding in found}, found


def baton(directory: Path, age_s: float) -> Path:
    """A lock as torch up to 2.13 makes it, as old as its directory's last change."""
    directory.mkdir(parents=True, exist_ok=True)
    os.close(os.open(directory / "lock", os.O_CREAT | os.O_EXCL))
    aged(directory, age_s)
    return aged(directory / "lock", age_s)


def test_of_whole_units_and_of_a_root_without_caches_nothing_is_told(root):
    silent(look(root), *OURS)
    wrote_bytes(root / "jit/tvm-ffi/add_01/add.so", whole_library())
    wrote_bytes(root / "jit/tvm-ffi/add_01/lock", b"")
    wrote_bytes(root / "jit/cupy/a.cubin", b"x")
    silent(look(root), *OURS)


class TestHangs:
    @pytest.fixture
    def theirs(self, everyones: Path, as_root: None) -> Path:
        base = everyones / "tvm"
        wrote_bytes(base / "add_01/add.so", whole_library())
        (base / "add_01/lock").touch(mode=0o755)
        for path in (base, base / "add_01"):
            path.chmod(0o755)
        return base

    def test_of_a_cache_that_may_not_be_written_it_is_told_that_tvm_ffi_waits_for_ever(
        self, everyones, theirs
    ):
        with acting_as(ADA):
            found = look(everyones / "none", TVM_FFI_CACHE_DIR=str(theirs))
            silent(look(everyones / "none"), "jit-hangs")
        assert told(found, "jit-hangs", "error").subject == str(theirs)
        silent(look(everyones / "none", TVM_FFI_CACHE_DIR=str(theirs)), "jit-hangs")

    def test_of_a_lock_that_only_its_maker_may_write_it_is_told_too(self, everyones, theirs):
        theirs.chmod(0o777)
        with acting_as(ADA):
            found = look(everyones / "none", TVM_FFI_CACHE_DIR=str(theirs))
        finding = told(found, "jit-hangs", "error")
        assert finding.subject == str(theirs / "add_01")
        assert "1 of its 1 modules" in finding.fact
        (theirs / "add_01/lock").chmod(0o777)
        with acting_as(ADA):
            silent(look(everyones / "none", TVM_FFI_CACHE_DIR=str(theirs)), "jit-hangs")


class TestLeftLocks:
    def test_one_that_nobody_has_open_is_told_with_the_command_that_removes_it(self, root):
        path = unit(root, "torch-extensions", DAY)
        lock = baton(path, HOUR)
        finding = told(look(root), "jit-lock-left", "error")
        assert finding.subject == str(lock)
        subprocess.run(finding.fix.partition(",")[0].split(), check=True)
        silent(look(root), "jit-lock-left")

    def test_a_build_that_was_killed_before_it_wrote_anything_is_told_too(self, root):
        baton(root / "jit/torch-extensions/fresh", HOUR)
        assert told(look(root), "jit-lock-left", "error")

    def test_one_that_is_held_or_young_or_waited_for_by_flock_alone_is_not(self, root):
        path = unit(root, "torch-extensions", DAY)
        lock = baton(path, 0)
        silent(look(root), "jit-lock-left")
        aged(lock, HOUR)
        with lock.open():
            silent(look(root), "jit-lock-left")
        lock.chmod(0o644)  # as torch 2.14 leaves it for good
        silent(look(root), "jit-lock-left")

    def test_a_directory_that_the_variable_names_elsewhere_is_looked_at(self, root, tmp_path):
        lock = baton(tmp_path / "mine/one", HOUR)
        found = look(root, TORCH_EXTENSIONS_DIR=str(tmp_path / "mine"))
        assert told(found, "jit-lock-left", "error").subject == str(lock)


class TestDamaged:
    def test_files_are_counted_by_cache_with_the_command_that_removes_their_units(self, root, here):
        for name in ("a", "b"):
            wrote_bytes(root / f"jit/tvm-ffi/{name}_01/{name}.so", whole_library()[:50])
        finding = told(look(root), "jit-damaged", "error")
        assert finding.subject == f"{root}/jit/tvm-ffi"
        assert finding.fact.startswith("2 files are damaged")
        assert here(*finding.fix.split()[1:]).code == 0
        silent(look(root), "jit-damaged")

    def test_looking_ends_after_seconds_and_says_how_far_it_came(self, root, monkeypatch):
        wrote_bytes(root / "jit/tvm-ffi/a_01/a.so", b"")
        monkeypatch.setattr(jit_checks, "_JUDGING_S", -1.0)
        silent(look(root), "jit-damaged")


def test_what_a_full_disk_left_is_told_after_an_hour(root, here):
    left = wrote(root / "jit/warp/1.19.0/wp_a_0123456_p1_t2/a.cpp", 9, HOUR / 2)
    kept = unit(root, "warp", DAY)
    silent(look(root), "jit-left-behind")
    aged(left, 2 * HOUR)
    finding = told(look(root), "jit-left-behind", "warning")
    assert "wp_a_0123456_p1_t2" in finding.fact
    here(*finding.fix.split()[1:], "--yes")
    silent(look(root), "jit-left-behind")
    assert kept.exists()


def test_caches_over_their_limit_are_told(root):
    unit(root, "cute-dsl", DAY)
    wrote(root / "jit/helion/a.best_config", 9000, DAY)
    silent(look(root, GPUCACHE_JIT_MAX_SIZE="1000"), "jit-over-limit")
    silent(look(root), "jit-over-limit")
    found = look(root, GPUCACHE_JIT_MAX_SIZE="999")
    assert "1000 B" in told(found, "jit-over-limit", "warning").fact


@pytest.mark.parametrize("planted", ["fifo", "link", "directory"])
def test_whatever_lies_in_the_place_of_a_lock_hangs_nobody(root, tmp_path, planted):
    path = unit(root, "torch-extensions", DAY) / "lock"
    if planted == "fifo":
        os.mkfifo(path, 0o755)
    elif planted == "link":
        path.symlink_to(tmp_path / "outside")
    else:
        path.mkdir()
    silent(look(root), "jit-lock-left")
