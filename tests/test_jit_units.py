"""What may go alone of JIT caches is found by its names, measured, and removed beside the software that wrote it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support.jit_trees import DAY, HASH, HOUR, LEVEL, UNITS, aged, all_files, unit, wrote
from support.users import ADA

from gpucache.disk.within import Straight
from gpucache.layout.jit_caches import JIT_CACHES, by_name
from gpucache.store import jit_locks, jit_removal, jit_units
from gpucache.store.deletion import Freed
from gpucache.store.jit_removal import remove_unit, sweep
from gpucache.store.jit_units import JitUnit, JitUnits, find, is_left_behind
from gpucache.store.removal import InUse


def found(root: Path, cache: str) -> JitUnits:
    (one,) = find(str(root.resolve()), [by_name(cache)])
    return one


def only(root: Path, cache: str) -> JitUnit:
    (one,) = found(root, cache).units
    return one


def removed(one: JitUnit, mounted: tuple[str, ...] = ()) -> Freed:
    with Straight() as disk:
        return remove_unit(one, by_name(one.cache), mounted, disk)


class TestFind:
    @pytest.mark.parametrize("cache", UNITS)
    def test_the_unit_of_each_cache_is_known_with_all_its_files(self, root, cache):
        path = unit(root, cache, age_s=3 * HOUR)
        one = only(root, cache)
        (name,) = UNITS[cache]
        assert (one.cache, one.name, one.path) == (cache, name, str(path.resolve()))
        assert (one.files, one.logical_bytes, one.physical_bytes) == (
            len(UNITS[cache][name]),
            1000,
            1000,
        )
        assert round((time.time() - one.used) / HOUR) == 3
        assert one.uid == os.geteuid()
        assert not one.is_closed

    def test_a_root_without_caches_has_no_units(self, root):
        root.mkdir()
        assert find(str(root), JIT_CACHES) == []

    def test_a_members_own_directory_is_looked_at_too(self, root):
        unit(root, "warp")
        (root / "members/1000").mkdir(parents=True)
        (root / "jit").rename(root / "members/1000/jit")
        unit(root, "warp")
        assert [one.directory for one in find(str(root.resolve()), [by_name("warp")])] == [
            f"{root.resolve()}/jit/warp",
            f"{root.resolve()}/members/1000/jit/warp",
        ]

    def test_whoever_sets_the_variable_by_hand_may_leave_the_level_out(self, root):
        made = unit(root, "torch-extensions")
        made.rename(made.parent.parent / "one")
        assert only(root, "torch-extensions").name == "one"

    def test_the_newest_access_of_any_file_is_the_use(self, root):
        path = unit(root, "warp", age_s=9 * DAY)
        used = time.time() - HOUR
        os.utime(next(path.iterdir()), (used, used - DAY))
        one = only(root, "warp")
        assert one.used == pytest.approx(used, abs=1)
        assert one.modified == pytest.approx(used - DAY, abs=1)

    def test_a_module_named_like_a_process_is_no_temporary(self, root):
        unit(root, "warp", name="my_pkg.my_tools")
        left = "1.19.0/wp_a_0123456_p12_t140"
        wrote(root / "jit/warp" / left / "a.cpp", 10, 3 * HOUR)
        seen = found(root, "warp")
        assert [one.name for one in seen.units] == ["1.19.0/wp_my_pkg.my_tools_09f3766"]
        assert [one.name for one in seen.staged] == [left]
        assert is_left_behind(seen.staged[0], time.time())
        assert not is_left_behind(seen.staged[0], time.time() - 2.5 * HOUR)

    @pytest.mark.parametrize(
        ("cache", "left"),
        [
            ("numba", "g_8878c793/nb.f-2.py311.nbi.tmp.0123456789abcdef"),
            ("numba", "g_8878c793/nb.f-2.py311.1.nbc.tmp.0123456789abcdef"),
            ("quack", f"fingerprint/{HASH}.o.tmp.123"),
            ("helion", "tmp.01234567-89ab-cdef-0123-456789abcdef"),
            ("torch-kernels", "add_kernel_arch9.0_nvrtc13.0_sass_100_0123_tmp_123"),
        ],
    )
    def test_what_a_writer_has_not_renamed_yet_is_no_unit(self, root, cache, left):
        """The names are those of the sources: numba/core/caching.py, quack/cache/jit.py and the others."""
        wrote(root / "jit" / cache / left, 10, 3 * HOUR)
        seen = found(root, cache)
        assert seen.units == ()
        assert [one.name for one in seen.staged] == [left]

    def test_an_index_and_its_companions_are_one_unit_and_a_lone_companion_is_one(self, root):
        path = unit(root, "numba")
        assert only(root, "numba").parts == (
            "g_8878c793/nb.f-2.py311.nbi",
            "g_8878c793/nb.f-2.py311.1.nbc",
        )
        path.unlink()
        assert only(root, "numba").parts == ("g_8878c793/nb.f-2.py311.1.nbc",)

    def test_the_software_lock_is_no_part(self, root):
        path = unit(root, "tvm-ffi", age_s=3 * HOUR)
        (path / "lock").touch()
        one = only(root, "tvm-ffi")
        assert one.files == 3
        assert round((time.time() - one.used) / HOUR) == 3

    def test_hard_links_within_a_unit_count_once_among_the_physical_bytes(self, root):
        path = unit(root, "tilelang")
        os.link(path / "params.json", path / "other.json")
        one = only(root, "tilelang")
        assert (one.logical_bytes, one.physical_bytes) == (1100, 1000)

    def test_links_fifos_and_what_nobody_knows_are_no_units(self, root, tmp_path):
        outside = wrote(tmp_path / "outside/1.19.0/wp_x_0123456/x.o", 9, HOUR)
        unit(root, "warp")
        version = root / "jit/warp/1.19.0"
        (version / "wp_link_0123456").symlink_to(outside.parent)
        (root / "jit/warp/1.20.0").symlink_to(outside.parent.parent)
        os.mkfifo(version / "wp_fifo_0123456")
        wrote(version / "notes.txt", 9, HOUR)
        wrote(version / "wp_dir/inner", 9, HOUR)
        names = [one.name for one in found(root, "warp").units]
        assert names == ["1.19.0/wp___main___09f3766", "1.19.0/wp_dir"]

    def test_a_cache_that_is_a_link_is_not_looked_into(self, root, tmp_path):
        unit(tmp_path / "other", "warp")
        (root / "jit").mkdir(parents=True)
        (root / "jit/warp").symlink_to(tmp_path / "other/jit/warp")
        assert find(str(root.resolve()), [by_name("warp")]) == []

    def test_a_tree_deeper_than_anybody_makes_ends_the_walk_and_stays(self, root):
        path = unit(root, "tvm-ffi")
        deep = path
        for _ in range(jit_units.DEEPEST + 3):
            deep = deep / "d"
        deep.mkdir(parents=True)
        one = only(root, "tvm-ffi")
        assert one.is_closed
        with pytest.raises(InUse, match="not all of it"):
            removed(one)
        assert (path / "add.so").exists()

    def test_names_beyond_the_most_are_told_and_not_looked_at(self, root, monkeypatch):
        for number in range(9):
            wrote(root / f"jit/cupy/{number}.cubin", 1, HOUR)
        monkeypatch.setattr(jit_units, "MOST_NAMES", 5)
        seen = found(root, "cupy")
        assert len(seen.units) == 5
        assert not seen.is_complete

    def test_names_that_are_no_text_are_units_like_others(self, root):
        name = os.fsdecode(b"\xff\x1b[31m\n.cubin")
        wrote(root / "jit/cupy" / name, 1, HOUR)
        assert only(root, "cupy").name == name
        removed(only(root, "cupy"))
        assert all_files(root) == []


class TestRemoveUnit:
    @pytest.mark.parametrize("cache", UNITS)
    def test_all_of_a_unit_goes_and_nothing_else(self, root, cache):
        unit(root, cache)
        keeper = wrote(root / "jit" / cache / "keep.txt", 7, HOUR)
        one = only(root, cache)
        freed = removed(one)
        assert freed == Freed(one.files, 1000, 1000)
        assert all_files(root) == [f"{cache}/keep.txt"]
        assert keeper.read_bytes() == b"x" * 7

    def test_the_directory_and_the_lock_of_tvm_ffi_stay_for_those_who_would_wait_for_them(
        self, root
    ):
        path = unit(root, "tvm-ffi")
        (path / "lock").touch()
        removed(only(root, "tvm-ffi"))
        assert [one.name for one in path.iterdir()] == ["lock"]
        assert found(root, "tvm-ffi").units == ()

    def test_of_torchs_extensions_an_empty_directory_stays_in_which_the_next_build_takes_its_lock(
        self, root
    ):
        path = unit(root, "torch-extensions")
        removed(only(root, "torch-extensions"))
        assert list(path.iterdir()) == []
        assert found(root, "torch-extensions").units == ()
        os.close(os.open(path / "lock", os.O_CREAT | os.O_EXCL))
        assert only(root, "torch-extensions").files == 0, "a killed build is waited for"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act in another user's root")
    def test_what_root_makes_in_the_place_of_anothers_directory_is_that_ones(self, root):
        path = unit(root, "torch-extensions")
        os.chown(path, ADA, ADA)
        removed(only(root, "torch-extensions"))
        assert (path.stat().st_uid, path.stat().st_gid) == (ADA, ADA)

    @pytest.mark.parametrize(
        ("cache", "lock"),
        [
            ("tvm-ffi", "add_3acd30086a5fd9b7/lock"),
            ("torch-extensions", f"{LEVEL}/one/lock"),
            ("flashinfer", ".cache/flashinfer/0.7.2/90a/cached_ops/tmp/page.lock"),
            ("quack", f"fingerprint/{'0123456789abcdef' * 4}.lock"),
            ("jax", ".lockfile"),
        ],
    )
    def test_what_its_software_holds_the_lock_of_stays(self, root, cache, lock):
        unit(root, cache)
        path = root / "jit" / cache / lock
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o644)
        before = all_files(root)
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(InUse, match="lock"):
                removed(only(root, cache))
        assert all_files(root) == before
        removed(only(root, cache))
        assert {Path(one).name for one in all_files(root)} <= {path.name}

    @pytest.mark.parametrize("cache", ["torch-extensions", "aiter"])
    def test_a_lock_that_is_there_keeps_a_unit_until_nobody_has_it_and_nothing_changes(
        self, root, cache
    ):
        made = unit(root, cache, age_s=3 * DAY)
        lock = (
            made / "lock" if cache == "torch-extensions" else made.parent / "build/lock_module_one"
        )
        fd = os.open(lock, os.O_CREAT | os.O_EXCL)  # as `FileBaton` does
        with pytest.raises(InUse, match="being built"):
            removed(only(root, cache))
        aged(lock, 2 * HOUR)
        with pytest.raises(InUse, match="being built"):
            removed(only(root, cache))
        os.close(fd)
        assert removed(only(root, cache)).files

    def test_a_lock_whose_holder_may_be_hidden_is_believed_for_a_day(self, root, monkeypatch):
        made = unit(root, "torch-extensions", age_s=3 * DAY)
        os.close(os.open(made / "lock", os.O_CREAT | os.O_EXCL))
        monkeypatch.setattr(jit_locks, "is_open", lambda found: None)
        aged(made / "lock", 2 * HOUR)
        with pytest.raises(InUse, match="being built"):
            removed(only(root, "torch-extensions"))
        aged(made / "lock", 25 * HOUR)
        assert removed(only(root, "torch-extensions")).files

    def test_what_was_used_since_it_was_found_stays(self, root):
        path = unit(root, "warp")
        one = only(root, "warp")
        os.utime(next(path.iterdir()))
        with pytest.raises(InUse, match="used or replaced"):
            removed(one)
        assert len(all_files(root)) == 3

    def test_a_unit_that_another_process_has_removed_is_no_error(self, root):
        unit(root, "numba")
        one = only(root, "numba")
        removed(one)
        assert removed(one) == Freed()

    def test_a_link_in_the_place_of_a_directory_on_the_way_is_not_followed(self, root, tmp_path):
        unit(root, "warp")
        one = only(root, "warp")
        version = root / "jit/warp/1.19.0"
        version.rename(tmp_path / "moved")
        version.symlink_to(tmp_path / "moved")
        with pytest.raises(InUse):
            removed(one)
        assert len(list((tmp_path / "moved").rglob("*.o"))) == 1

    def test_what_the_disk_refuses_to_look_at_stays_and_ends_no_removal_of_others(
        self, root, monkeypatch
    ):
        unit(root, "warp")
        one = only(root, "warp")

        def refuse(*args: object, **named: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "stat", refuse)
        with pytest.raises(InUse, match="Input/output error"):
            removed(one)
        monkeypatch.undo()
        assert len(all_files(root)) == 3

    def test_a_unit_in_which_something_is_mounted_stays(self, root):
        path = unit(root, "warp").resolve()
        with pytest.raises(InUse, match="mounted"):
            removed(only(root, "warp"), (f"{path}/inner",))

    def test_the_index_goes_before_what_it_leads_to(self, root, monkeypatch):
        unit(root, "jax")
        gone: list[str] = []
        real = Straight.unlink

        def noting(disk: Straight, path: str) -> None:
            gone.append(path.rpartition("-")[2])
            real(disk, path)

        monkeypatch.setattr(Straight, "unlink", noting)
        removed(only(root, "jax"))
        assert gone == ["cache", "atime"]


@pytest.mark.parametrize("cache", UNITS)
def test_stopped_at_any_step_a_unit_is_whole_to_its_readers_or_begins_nowhere(
    root, cache, monkeypatch
):
    """What is left of files that go one by one is found by nobody, whose first file is gone.

    Of tvm-ffi, whose directory stays, some files may be left: ninja makes the others again.
    """
    real = Straight.act
    step = 0
    is_done = False
    while not is_done:
        shutil.rmtree(root, ignore_errors=True)
        path = unit(root, cache)
        whole = all_files(root)
        left = step

        def stopping(disk: Straight, path: str, act: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(disk, path, act)

        one = only(root, cache)
        with monkeypatch.context() as patch:
            patch.setattr(Straight, "act", stopping)
            try:
                removed(one)
                is_done = True
            except KeyboardInterrupt:
                step += 1
        if path.exists() and not one.keeps_directory:
            assert all_files(root) == whole, f"stopped at step {step}"
    assert step > 2
    assert all_files(root) == []


class TestSweep:
    def test_what_a_killed_removal_left_is_found_and_goes_at_once(self, root, monkeypatch):
        unit(root, "warp")

        def killed(*_: object) -> Freed:
            raise KeyboardInterrupt

        monkeypatch.setattr(jit_removal.Deletion, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            removed(only(root, "warp"))
        monkeypatch.undo()
        seen = found(root, "warp")
        assert seen.units == ()
        with Straight() as disk:
            assert sweep(seen.aside[0], seen.cache, (), disk).files == 3
        assert all_files(root) == []

    def test_what_its_writer_has_touched_since_stays(self, root):
        path = wrote(root / "jit/cupy/tmpabcd1234", 5, 2 * HOUR)
        seen = found(root, "cupy")
        os.utime(path)
        with Straight() as disk, pytest.raises(InUse, match="at it"):
            sweep(seen.staged[0], seen.cache, (), disk)
        aged(path, 2 * HOUR)
        with Straight() as disk:
            assert sweep(seen.staged[0], seen.cache, (), disk).files == 1
