"""A smaller entry is a hit as the whole one was: to the plug-in, to stock Triton, and to other versions of it.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton and gpucache; here several may stand, with commas.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.ranks import PLUGIN, compile_kernels
from support.trees import (
    KERNEL,
    KEY,
    OLD,
    Tree,
    at_rename,
    left_by_stock,
    physical,
    planned,
    pruned,
    set_used,
    used,
)
from support.users import ADA

from gpucache.disk.within import Straight
from gpucache.kernels.stages import DROPPED, kept
from gpucache.store.lookup import sound
from gpucache.store.manifest import CONDEMNED, MANIFEST, RECIPE, read_manifest
from gpucache.store.recipe_file import read_recipe
from gpucache.store.removal import InUse
from gpucache.upkeep.slim import slim
from gpucache.upkeep.verify import verify

PYTHONS = os.environ.get("GPUCACHE_TEST_TRITON", sys.executable).split(",")
SMALL = {name: data for name, data in KERNEL.items() if kept(name)}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def slimmed(tree: Tree) -> int:
    with Straight() as disk:
        freed = slim(str(tree.root), KEY, "add.json", tree.places, tree.locks, disk)
    return sum(one.physical_bytes for one in freed)


# ---- real kernels


def compiled(python: str, root: Path, directory: str, *, plugin: bool) -> Mapping[str, Any]:
    """What a fresh process says that compiled, or found, two real kernels."""
    env = {"GPUCACHE_DIR": str(root), "TRITON_CACHE_DIR": str(root / "triton" / directory)}
    said = compile_kernels({**env, **PLUGIN} if plugin else env, 2, 90, python=python)
    assert said["dangling"] == []
    return said


def grown_old(root: Path) -> None:
    for path in (root / "triton").glob("*/*/*"):
        os.utime(path, (OLD, OLD))


@pytest.mark.parametrize("python", PYTHONS)
def test_a_smaller_entry_is_a_hit_through_the_plug_in_and_to_stock_triton(python, tmp_path, triton):
    root = tmp_path / "root"
    first = compiled(python, root, "0", plugin=True)
    assert first["compiled"] == 2
    assert compiled(python, root, "1", plugin=True)["compiled"] == 0
    for path in (root / "gpucache/v1/store").glob("*/*"):
        set_used(path, OLD)
    before = physical(root)
    done = pruned(root, keep_binaries=True)
    assert (done.slimmed, done.skipped) == (2, ())
    assert done.freed.physical_bytes == before - physical(root) > 0.4 * before
    print(f"{python}: {before} bytes, {before - physical(root)} less")
    left = {path.name for path in root.rglob("scaled.*")}
    assert left == {"scaled.json", "scaled.cubin"}
    for directory, plugin in (("0", True), ("1", False), ("0", False), ("2", True)):
        said = compiled(python, root, directory, plugin=plugin)
        assert (said["compiled"], said["digests"]) == (0, first["digests"]), (directory, plugin)


@pytest.mark.parametrize("python", PYTHONS)
def test_a_smaller_one_of_stock_triton_is_a_hit_to_it_and_is_adopted(python, tmp_path, triton):
    root = tmp_path / "root"
    first = compiled(python, root, "0", plugin=False)
    grown_old(root)
    before = physical(root)
    done = pruned(root, keep_binaries=True)
    assert (done.slimmed, done.skipped) == (2, ())
    assert done.freed.physical_bytes == before - physical(root) > 0.4 * before
    for directory, plugin in (("0", False), ("0", True), ("1", True)):
        said = compiled(python, root, directory, plugin=plugin)
        assert (said["compiled"], said["digests"]) == (0, first["digests"]), (directory, plugin)


# ---- what stays


class TestRecipes:
    def test_a_smaller_entry_has_its_recipe(self, tmp_path):
        tree = Tree(tmp_path, recipe=b"how")
        inode = (tree.entry / RECIPE).stat().st_ino
        assert slimmed(tree) > 0
        read = read_manifest(str(tree.entry))
        assert read is not None
        assert read_recipe(str(tree.entry), read[0]) == b"how"
        assert (tree.entry / RECIPE).stat().st_ino == inode
        assert all(tree.whole(directory, SMALL) for directory in tree.directories)
        assert not (tree.view / RECIPE).exists()
        assert not verify(str(tree.root)).findings

    @pytest.mark.parametrize("damaged", [b"torn", None])
    def test_a_smaller_entry_tells_of_no_recipe_that_was_damaged(self, damaged, tmp_path):
        tree = Tree(tmp_path, recipe=b"how")
        (tree.entry / RECIPE).unlink()
        if damaged is not None:
            (tree.entry / RECIPE).write_bytes(damaged)
        assert slimmed(tree) > 0
        assert not (tree.entry / RECIPE).exists()
        assert all(tree.whole(directory, SMALL) for directory in tree.directories)
        assert not verify(str(tree.root)).findings


class TestSlim:
    def test_the_entry_and_all_views_lose_what_no_launch_needs(self, tree, stock):
        inode = (tree.entry / "add.cubin").stat().st_ino
        assert slimmed(tree) > 0
        for directory in tree.directories:
            assert tree.whole(directory, SMALL)
            assert (directory / "add.cubin").stat().st_ino == inode
        for view in tree.views:
            assert stock(view.parent).get_group("add.json") == {
                name: str(view / name) for name in SMALL
            }
        assert len({(directory / MANIFEST).stat().st_ino for directory in tree.directories}) == 1
        assert not tree.left()
        assert os.listdir(tree.locks) == []

    def test_the_time_of_the_last_use_stays(self, tree):
        slimmed(tree)
        assert [used(directory) for directory in tree.directories] == [pytest.approx(OLD)] * 3

    def test_a_use_right_after_it_is_stamped(self, tree, monkeypatch):
        """Nothing sets the time back once a reader can see the smaller one."""

        def read() -> None:
            assert sound(str(tree.entry), False, 0.0)

        with monkeypatch.context() as patch:
            # three manifests, three directories, and staging's own
            at_rename(patch, 8, read, after=True)
            slimmed(tree)
        assert used(tree.entry) > OLD + 1800

    def test_what_is_known_of_it_stays(self, tree):
        before, _ = read_manifest(str(tree.entry))
        slimmed(tree)
        after, _ = read_manifest(str(tree.entry))
        assert after.files.keys() == SMALL.keys()
        assert after.facts == before.facts

    def test_it_goes_once(self, tree):
        slimmed(tree)
        assert planned(tree.root, keep_binaries=True).slimming == ()

    def test_a_view_that_lost_its_entry_keeps_its_manifest(self, tree, stock):
        shutil.rmtree(tree.entry)
        shutil.rmtree(tree.other_view)
        done = pruned(tree.root, keep_binaries=True)
        assert (done.slimmed, done.skipped) == (1, ())
        assert tree.whole(tree.view, SMALL)
        assert not tree.left()
        assert stock(tree.view.parent).get_group("add.json") == {
            name: str(tree.view / name) for name in SMALL
        }

    def test_its_last_use_stays_too(self, tree):
        shutil.rmtree(tree.entry)
        pruned(tree.root, keep_binaries=True)
        assert used(tree.view) == pytest.approx(OLD)

    def test_one_of_stock_tritons_stays_open_to_others_and_as_old_as_it_was(self, tmp_path, stock):
        home = left_by_stock(tmp_path / "root/triton/0", KEY)
        home.chmod(0o755)
        done = pruned(tmp_path / "root", keep_binaries=True)
        assert (done.slimmed, done.skipped) == (1, ())
        assert stat.S_IMODE(home.stat().st_mode) == 0o755
        assert sorted(os.listdir(home)) == sorted([*SMALL, "__grp__add.json"])
        assert (home / "add.cubin").stat().st_mtime == pytest.approx(OLD)
        assert stock(home.parent).get_group("add.json") == {
            name: str(home / name) for name in SMALL
        }

    def test_two_hundred_hold_no_more_descriptors_than_one(self, tmp_path):
        root = tmp_path / "root"
        Tree(tmp_path)
        assert pruned(root, keep_binaries=True).slimmed == 1
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            Tree(tmp_path, f"{number:02}".translate(str.maketrans("0123456789", "BCDEFGHIJK")) * 26)
        made = len(os.listdir("/proc/self/fd"))
        assert pruned(root, keep_binaries=True).slimmed == 20
        assert len(os.listdir("/proc/self/fd")) - made <= max(0, before - made)


class TestRefused:
    @pytest.mark.parametrize("number", range(1, 12))
    def test_where_any_renaming_is_refused_every_directory_is_whole(
        self, tree, monkeypatch, number
    ):
        def refuse() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")

        with monkeypatch.context() as patch:
            at_rename(patch, number, refuse)
            with suppress(InUse):
                slimmed(tree)
        for directory in tree.directories:
            files = KERNEL if (directory / "add.ptx").exists() else SMALL
            assert tree.whole(directory, files)
            assert sound(str(directory), True, 0.0)
        assert not tree.left()
        assert not list(tree.root.rglob(CONDEMNED))
        assert os.listdir(tree.locks) == []

    @pytest.mark.root
    @pytest.mark.parametrize("room", range(0, 40_000, 4096))
    def test_a_full_disk_leaves_it_whole(self, tmp_path, mount, stock, room):
        """With room for any number of pages: none, some, or all of what is to be written."""
        point = tmp_path / "disk"
        mount(point, "-t", "tmpfs", "-o", "size=1m,mode=0700", "none")
        tree = Tree(point)
        left_by_stock(tree.root / "triton/0", "S" * 52)
        filled(point / "ballast", room)
        done = pruned(tree.root, keep_binaries=True)
        assert done.slimmed + len(done.skipped) == 2
        if room == 0:
            assert {one.why.partition(": ")[2] for one in done.skipped} == {
                "No space left on device"
            }
        for directory in tree.directories:
            assert tree.whole(directory, KERNEL if (directory / "add.ptx").exists() else SMALL)
        home = tree.root / "triton/0" / ("S" * 52)
        group = json.loads((home / "__grp__add.json").read_text())["child_paths"]
        assert group.keys() in (KERNEL.keys(), SMALL.keys())
        assert all(map(os.path.exists, group.values()))
        assert not tree.left()

    def test_a_group_that_is_not_whole_stays(self, tmp_path):
        home = left_by_stock(tmp_path / "root/triton/0", KEY)
        (home / "add.cubin").unlink()
        for path in home.iterdir():
            os.utime(path, (OLD, OLD))
        done = pruned(tmp_path / "root", keep_binaries=True)
        assert [one.why for one in done.skipped] == ["its group is not whole"]
        assert sorted(os.listdir(home)) == ["__grp__add.json", "add.json", "add.ptx"]

    def test_what_another_process_puts_in_its_place_stays(self, tree, monkeypatch):
        def another() -> None:
            assert tree.publish({**KERNEL, "add.cubin": b"another compile"})

        with monkeypatch.context() as patch:
            at_rename(patch, 6, another, after=True)
            with pytest.raises(InUse, match="another process"):
                slimmed(tree)
        assert (tree.entry / "add.cubin").read_bytes() == b"another compile"
        assert all(map(tree.whole, tree.views))
        assert not tree.left()

    def test_used_meanwhile_it_stays(self, tree):
        made = planned(tree.root, keep_binaries=True)
        set_used(tree.entry, time.time())
        assert "used" in made.execute().skipped[0].why
        assert tree.all_there()


def filled(ballast: Path, room: int) -> None:
    """Leave so many bytes on the disk."""
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - room))


@pytest.mark.root
@pytest.mark.parametrize("links", [True, False])
def test_what_root_makes_smaller_stays_its_owners(links, tmp_path, tree, monkeypatch):
    for path in (tree.root, *tree.root.rglob("*")):
        os.chown(path, ADA, ADA)
    if not links:

        def refusing(*_, **__):
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

        monkeypatch.setattr(os, "link", refusing)
    slimmed(tree)
    for directory in tree.directories:
        assert set(os.listdir(directory)) >= SMALL.keys()
        assert {path.stat().st_uid for path in (directory, *directory.iterdir())} == {ADA}


def test_only_what_people_read_goes():
    names = [
        "k.source",
        "k.ttir",
        "k.ttgir",
        "k.llir",
        "k.ptx",
        "k.cubin",
        "k.json",
        "k.hsaco",
        "k.so",
        "__grp__k.json",
    ]
    assert [name for name in names if not kept(name)] == [f"k{end}" for end in DROPPED]
