"""An entry goes whole or stays whole, whoever is faster, whatever fails, and wherever the removal is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.processes import PATIENCE_S
from support.trees import (
    FACTS,
    GROUP,
    KERNEL,
    KEY,
    OLD,
    Cache,
    Tree,
    aged,
    at_rename,
    place,
    set_used,
    whole_or_no_hit,
)

from gpucache.disk.files import remove_tree
from gpucache.disk.staging import Staging
from gpucache.disk.within import Straight, remove_tree_in
from gpucache.layout import paths
from gpucache.store import key_lock, lookup
from gpucache.store.deletion import NOTHING, Freed, delete
from gpucache.store.key_lock import KeyLock
from gpucache.store.lookup import _renewed, sound
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    Facts,
    Manifest,
    digest_of,
    entry_path,
    parse_manifest,
    single_key,
)
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import quarantine
from gpucache.store.removal import InUse, Target, finish, remove, taken
from gpucache.store.stock import describe, stock_group


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def hit(directory: Path) -> Manifest | None:
    """What a reader does whose stamp is due."""
    return sound(str(directory), False, 0.0, stamp_s=0.0)


class TestRemove:
    def test_it_takes_the_entry_from_the_store_and_all_directories_and_nothing_else(self, tree):
        assert tree.publish()
        freed = tree.remove()
        assert tree.all_gone()
        assert [one.files for one in freed] == [4, 5, 5]
        assert tree.view.parent.is_dir()

    def test_an_inode_with_links_elsewhere_is_not_freed(self, tree, tmp_path):
        os.link(tree.entry / "add.cubin", tmp_path / "held")
        total = sum((Path(tree.entry) / name).stat().st_size for name in [*KERNEL, MANIFEST])
        groups = [(view / GROUP).stat().st_size for view in tree.views]
        freed = NOTHING
        for one in tree.remove():
            freed = freed.plus(one)
        assert freed.logical_bytes == 3 * total + sum(groups)
        assert freed.physical_bytes == total + sum(groups) - len(KERNEL["add.cubin"])

    def test_without_a_directory_of_locks_it_takes_none(self, tree):
        os.rmdir(tree.locks)
        remove(KEY, tree.places, None)
        assert not tree.entry.exists()

    def test_of_eight_threads_one_removes_it(self, tree):
        places, start = tree.places, threading.Barrier(8)

        def removing(_: int) -> bool:
            start.wait(PATIENCE_S)
            try:
                remove(KEY, places, tree.locks)
            except InUse:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(removing, range(8))) == 1
        assert tree.all_gone()

    def test_of_two_without_locks_neither_undoes_what_the_other_has_done(self, tree, monkeypatch):
        places = tree.places

        def another() -> None:
            with pytest.raises(InUse):
                remove(KEY, places, None)

        at_rename(monkeypatch, 3, another, after=True)  # all is condemned, and not yet looked at
        remove(KEY, places, None)
        assert tree.all_gone()

    def test_four_processes_remove_each_entry_once(self, tmp_path):
        trees = [Tree(tmp_path / str(number)) for number in range(12)]
        work = [(tree.places, tree.locks) for tree in trees]
        context = multiprocessing.get_context("spawn")
        done = context.Queue()
        workers = [context.Process(target=remove_all, args=(work, done)) for _ in range(4)]
        for worker in workers:
            worker.start()
        removed = [number for _ in workers for number in done.get(timeout=PATIENCE_S)]
        for worker in workers:
            worker.join(PATIENCE_S)
            assert worker.exitcode == 0
        assert sorted(removed) == list(range(12))
        assert all(tree.all_gone() for tree in trees)


def remove_all(work, done):
    removed = []
    for number, (places, locks) in enumerate(work):
        try:
            remove(KEY, places, locks)
            removed.append(number)
        except InUse:
            continue
    done.put(removed)


class TestLosing:
    """The removal finds that somebody was faster, and everything is as it was."""

    def refused(self, tree: Tree, places: list[Target], why: str = "used or replaced") -> bool:
        with pytest.raises(InUse, match=why):
            remove(KEY, places, tree.locks)
        return tree.all_there()

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_a_use_before_it_began(self, tree, which):
        places = tree.places
        assert hit(tree.directories[which])
        assert self.refused(tree, places)

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_use_through_another_view_while_it_condemns(self, tree, monkeypatch, number):
        """Until the last manifest is renamed, when the others have long been looked at."""
        at_rename(monkeypatch, number, lambda: hit(tree.other_view) or pytest.fail("no hit"))
        assert self.refused(tree, tree.places)

    def test_a_reader_that_comes_after_is_told_that_there_is_none(self, tree, monkeypatch):
        at_rename(
            monkeypatch, 3, lambda: hit(tree.other_view) is None or pytest.fail("a hit"), after=True
        )
        tree.remove()
        assert tree.all_gone()

    def test_a_reader_whose_manifest_vanishes_before_its_stamp_is_told_that_there_is_none(
        self, tree, monkeypatch
    ):
        unchanged_paths = lookup.unchanged_paths

        def overtaken(directory: str, manifest: Manifest, here: int) -> dict[str, str] | None:
            paths = unchanged_paths(directory, manifest, here)
            tree.remove()
            return paths

        monkeypatch.setattr(lookup, "unchanged_paths", overtaken)
        assert hit(tree.view) is None
        assert tree.all_gone()

    def test_a_reader_that_renews_the_manifest_of_a_copy_is_seen_or_sees(self, tree, monkeypatch):
        """It had read the old manifest before, and writes a new one after that was condemned."""
        os.utime(tree.other_view / "add.ptx", (OLD, OLD))
        monkeypatch.setattr(lookup, "unchanged_paths", lambda *_: None)
        intact, seen = lookup.intact, []

        def reading(directory: str, manifest: Manifest) -> bool:
            monkeypatch.setattr(lookup, "intact", intact)
            with pytest.raises(InUse):
                remove(KEY, tree.places, tree.locks)
            return True

        def condemned() -> None:
            manifest = parse_manifest((tree.other_view / CONDEMNED).read_bytes())
            seen.append(_renewed(str(tree.other_view), manifest))

        at_rename(monkeypatch, 3, condemned, after=True)
        monkeypatch.setattr(lookup, "intact", reading)
        assert hit(tree.view), "which the removal left alone"
        assert seen == [None]
        monkeypatch.undo()
        assert tree.all_there()

    def test_a_replaced_entry(self, tree):
        places = tree.places
        quarantine(str(tree.root), str(tree.entry))
        assert tree.publish()
        set_used(tree.entry, OLD)
        assert self.refused(tree, places)

    def test_a_view_that_vanished(self, tree):
        places = tree.places
        shutil.rmtree(tree.view)
        with pytest.raises(InUse, match="No such file"):
            remove(KEY, places, tree.locks)
        assert tree.link()
        assert tree.all_there()

    @pytest.mark.parametrize("linked", ["entry", "view", "other_view"])
    def test_a_directory_that_is_a_link_by_now(self, tree, tmp_path, linked):
        places, path = tree.places, getattr(tree, linked)
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
        with pytest.raises(InUse, match="symbolic link"):
            remove(KEY, places, tree.locks)
        assert tree.all_there()

    @pytest.mark.root
    @pytest.mark.parametrize("device", ["0", "1"])
    def test_a_read_only_device_directory(self, tree, mount, device):
        point = tree.root / "triton" / device
        mount(point, "--bind", str(point))
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        assert self.refused(tree, tree.places, "Read-only file system")

    def test_a_held_lock(self, tree):
        lock = KeyLock(f"{tree.locks}/{KEY}.lock")
        assert lock.try_acquire(sys._getframe(), "add")
        with pytest.raises(InUse, match=rf"locked by process {os.getpid()} .* for add"):
            tree.remove()
        lock.release()
        assert tree.all_there()

    def test_a_planted_lock_leads_nowhere(self, tree, tmp_path):
        (tmp_path / "outside").write_text("mine")
        Path(tree.locks, f"{KEY}.lock").symlink_to(tmp_path / "outside")
        with pytest.raises(InUse):
            tree.remove()
        assert (tmp_path / "outside").read_text() == "mine"
        Path(tree.locks, f"{KEY}.lock").unlink()
        assert tree.all_there()


class Stopped(BaseException):
    """As ^C comes, at any place."""


class TestFailing:
    @pytest.mark.parametrize("number", range(1, 7))
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_stopped_at_any_renaming_it_puts_everything_back(
        self, tree, monkeypatch, number, after
    ):
        def stop() -> None:
            raise Stopped

        at_rename(monkeypatch, number, stop, after=after)
        with pytest.raises(Stopped):
            tree.remove()
        assert tree.all_there()

    @pytest.mark.parametrize("number", range(1, 7))
    def test_refused_at_any_renaming_it_puts_everything_back(self, tree, monkeypatch, number):
        def refuse() -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), "there")

        at_rename(monkeypatch, number, refuse)
        with pytest.raises(InUse, match="/.+: Read-only file system"):
            tree.remove()
        assert tree.all_there()

    def test_what_came_into_its_place_meanwhile_stays(self, tree, disk):
        def overtaken() -> None:
            with taken(KEY, tree.places, tree.locks, disk):
                assert tree.publish({**KERNEL, "add.cubin": b"another compile"})
                raise Stopped

        with pytest.raises(Stopped):
            overtaken()
        assert (tree.entry / "add.cubin").read_bytes() == b"another compile"
        assert all(map(tree.whole, tree.views))
        assert not tree.left()

    def test_the_lock_is_held_as_long_as_the_block(self, tree, disk):
        """Its keeper frees what no frame on the stack accounts for."""
        with taken(KEY, tree.places, tree.locks, disk):
            for lock in key_lock._keeper.locks.copy():
                lock.beat(sys._current_frames())
            assert os.listdir(tree.locks) == [f"{KEY}.lock"]
        assert os.listdir(tree.locks) == []


# ---- beside stock Triton, and where an earlier one was killed


@pytest.fixture
def of_stock(tree, stock):
    """A directory as Triton's own manager leaves it; nobody else has the key."""
    shutil.rmtree(tree.entry)
    for view in tree.views:
        shutil.rmtree(view)
    manager = stock(tree.view.parent)
    manager.put_group("add.json", {name: manager.put(data, name) for name, data in KERNEL.items()})
    return tree


class TestStock:
    def test_it_goes(self, of_stock):
        (freed,) = remove(KEY, [place(of_stock.view, ours=False)], of_stock.locks)
        assert freed.files == 4
        assert of_stock.all_gone()

    def test_one_that_was_adopted_meanwhile_stays(self, of_stock, monkeypatch, stock):
        """Between the look and the condemning, and after it: then whoever adopts it is told."""
        files = stock_group(str(of_stock.view), "add.json")
        digests = {name: digest_of(path) for name, path in files.items()}
        places = [place(of_stock.view, ours=False)]

        def adopt() -> None:
            with pytest.raises(FileNotFoundError, match="being removed"):
                describe(str(of_stock.view), digests, FACTS)

        with monkeypatch.context() as patch:
            at_rename(patch, 1, adopt, after=True)
            with pytest.raises(InUse):
                remove(KEY, places, of_stock.locks)
        assert of_stock.whole(of_stock.view)
        assert not (of_stock.view / CONDEMNED).exists()
        assert set(stock(of_stock.view.parent).get_group("add.json")) == set(KERNEL)
        with pytest.raises(InUse):
            remove(KEY, places, of_stock.locks)

    def test_while_it_goes_neither_triton_nor_we_take_it_for_a_hit(
        self, of_stock, monkeypatch, stock
    ):
        seen = []

        def look() -> None:
            seen.append(stock(of_stock.view.parent).get_group("add.json"))
            seen.append(stock_group(str(of_stock.view), "add.json"))

        with monkeypatch.context() as patch:
            at_rename(patch, 1, look, after=True)
            remove(KEY, [place(of_stock.view, ours=False)], of_stock.locks)
        assert seen == [None, None]

    @pytest.mark.parametrize("number", [1, 2])
    def test_refused_it_is_as_it_was(self, of_stock, monkeypatch, stock, number):
        def refuse() -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), "there")

        with monkeypatch.context() as patch:
            at_rename(patch, number, refuse)
            with pytest.raises(InUse):
                remove(KEY, [place(of_stock.view, ours=False)], of_stock.locks)
        assert set(stock(of_stock.view.parent).get_group("add.json")) == set(KERNEL)
        assert not of_stock.left()

    def test_a_directory_without_a_group_goes_too(self, of_stock):
        (of_stock.view / GROUP).unlink()
        remove(KEY, [place(of_stock.view, ours=False)], of_stock.locks)
        assert of_stock.all_gone()


class TestFinish:
    @pytest.fixture
    def condemned(self, tree):
        """Killed after the first rename."""
        (tree.entry / MANIFEST).rename(tree.entry / CONDEMNED)
        return tree

    def modified(self, directory: Path) -> float:
        return directory.lstat().st_mtime

    def test_it_deletes_what_was_condemned_and_leaves_the_views(self, condemned, disk):
        assert (
            finish(
                str(condemned.entry), self.modified(condemned.entry), condemned.locks, disk
            ).files
            == 4
        )
        assert not condemned.entry.exists()
        assert all(map(condemned.whole, condemned.views))
        assert not condemned.left()

    def test_what_was_mended_since_stays(self, condemned, disk):
        modified = self.modified(condemned.entry)
        assert condemned.publish(repair=True)
        with pytest.raises(InUse):
            finish(str(condemned.entry), modified, condemned.locks, disk)
        assert condemned.whole(condemned.entry)

    def test_what_is_being_compiled_stays(self, condemned, disk):
        lock = KeyLock(f"{condemned.locks}/{KEY}.lock")
        assert lock.try_acquire(sys._getframe(), "add")
        with pytest.raises(InUse, match="locked"):
            finish(str(condemned.entry), self.modified(condemned.entry), condemned.locks, disk)
        lock.release()
        assert (condemned.entry / CONDEMNED).exists()

    def test_one_that_has_a_manifest_again_is_an_entry_again(self, condemned, disk):
        shutil.copy2(condemned.entry / CONDEMNED, condemned.entry / MANIFEST)
        with pytest.raises(InUse, match="an entry again"):
            finish(str(condemned.entry), self.modified(condemned.entry), condemned.locks, disk)
        assert condemned.whole(condemned.entry)
        assert not (condemned.entry / CONDEMNED).exists()

    def test_a_link_in_its_place_stays(self, condemned, tmp_path, disk):
        condemned.entry.rename(tmp_path / "moved")
        condemned.entry.symlink_to(tmp_path / "moved")
        with pytest.raises(InUse):
            finish(str(condemned.entry), self.modified(condemned.entry), condemned.locks, disk)
        assert len(os.listdir(tmp_path / "moved")) == 4

    def test_the_view_of_a_file_that_stands_for_itself_has_its_entrys_lock(
        self, cache, tmp_path, disk
    ):
        locks, key, name = str(tmp_path / "locks"), "A" * 52, "library.so"
        os.mkdir(locks)
        alone = single_key(key, name, "")
        view = cache.view.parent / key
        publish_entry(
            str(cache.root),
            alone,
            cache.staged({name: b"\x7f"}),
            Facts(name, None),
            cache.staging,
            repair=False,
        )
        entry = entry_path(str(cache.root), alone)
        assert link_view(str(cache.root), entry, str(view), sound(entry, False, 0.0), False)
        (view / MANIFEST).rename(view / CONDEMNED)
        lock = KeyLock(f"{locks}/{alone}.lock")
        assert lock.try_acquire(sys._getframe(), name)
        with pytest.raises(InUse, match="locked"):
            finish(str(view), self.modified(view), locks, disk)
        lock.release()
        assert finish(str(view), self.modified(view), locks, disk).files == 2


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


class TestDelete:
    @pytest.fixture
    def outside(self, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/file").write_text("mine")
        return tmp_path / "outside"

    def test_a_link_goes_and_what_it_leads_to_stays(self, outside, tmp_path, disk):
        (tmp_path / "link").symlink_to(outside)
        assert delete(str(tmp_path / "link"), disk).files == 1
        assert not os.path.lexists(tmp_path / "link")
        assert (outside / "file").read_text() == "mine"

    def test_links_inside_go_and_what_they_lead_to_stays(self, outside, tmp_path, disk):
        (tmp_path / "tree/inner").mkdir(parents=True)
        for name in ("link", "inner/link"):
            (tmp_path / "tree" / name).symlink_to(outside)
        (tmp_path / "tree/file").symlink_to(outside / "file")
        (tmp_path / "tree/nowhere").symlink_to("nowhere")
        assert delete(str(tmp_path / "tree"), disk).files == 4
        assert not (tmp_path / "tree").exists()
        assert (outside / "file").read_text() == "mine"

    def test_what_is_gone_counts_nothing(self, tmp_path, disk):
        assert delete(str(tmp_path / "absent"), disk) == NOTHING

    def test_two_names_of_one_file_are_freed_once(self, tmp_path, disk):
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/one").write_bytes(bytes(100))
        os.link(tmp_path / "tree/one", tmp_path / "tree/two")
        assert delete(str(tmp_path / "tree"), disk) == Freed(2, 200, 100)

    def test_what_vanishes_meanwhile_counts_nothing(self, tmp_path, monkeypatch, disk):
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/one").write_bytes(bytes(100))
        unlink = os.unlink
        monkeypatch.setattr(
            os, "unlink", lambda name, **more: (unlink(name, **more), unlink(name, **more))
        )
        assert delete(str(tmp_path / "tree"), disk) == NOTHING
        assert not (tmp_path / "tree").exists()

    def test_a_fifo_does_not_hang_it(self, tmp_path, disk):
        os.mkfifo(tmp_path / "fifo")
        assert delete(str(tmp_path / "fifo"), disk).files == 1


# ---- every system call

REMOVE = (
    SCRIPT
    + """
from gpucache.store.removal import Target, remove
key, locks, *directories = sys.argv[2:]
places = []
for path in directories:
    found = os.lstat(path + "/__entry__.json")
    places.append(Target(path, (found.st_ino, found.st_mtime_ns), True))
mark("begin")
remove(key, places, locks)
mark("end")
"""
)


def test_killed_at_any_system_call_the_entry_is_whole_or_none(every_call, stock):
    from gpucache.report.cache_report import scan
    from gpucache.upkeep.plan import plan
    from gpucache.upkeep.prune import PrunePolicy

    def start(home: Path) -> list[object]:
        tree = Tree(home)
        return [KEY, tree.locks, *tree.directories]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        directories = [
            Path(entry_path(str(root), KEY)),
            *(root / "triton" / name / KEY for name in "01"),
        ]
        for directory in directories:
            whole_or_no_hit(directory, stock, dict(KERNEL), line)
        aged(root)
        done = plan(scan(str(root)), PrunePolicy(max_entries=0, grace_s=600.0), {}).execute()
        assert not done.skipped, line
        assert not any(map(os.path.lexists, directories)), line
        assert not [stray for stray in scan(str(root)).strays if stray.dead], line

    every_call.killed_everywhere(REMOVE, start, check, least=24)


@pytest.fixture
def image(mount, tmp_path):
    """An entry with two views, baked into an image's layer: overlayfs refuses to rename its directories."""
    Tree(tmp_path / "lower")
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    mount(tmp_path / "merged", "-t", "overlay", "overlay", "-o", options)
    merged = Tree.__new__(Tree)
    merged.base, merged.root, merged.key = tmp_path / "merged", tmp_path / "merged" / "root", KEY
    merged.entry = Path(entry_path(str(merged.root), KEY))
    merged.view, merged.other_view = (merged.root / "triton" / name / KEY for name in "01")
    merged.locks = str(merged.root / "gpucache/v1/locks")
    merged.staging = Staging(paths.ours(str(merged.root), "tmp"))
    with pytest.raises(OSError, match="cross-device"):
        merged.entry.rename(merged.entry.with_name("moved"))
    return merged


def test_an_entry_in_an_images_layer_can_be_removed_and_made_again(image):
    image.remove()
    assert not any(directory.exists() for directory in image.directories)
    assert image.publish()
    assert image.link(image.view)
    assert sound(str(image.view), True, 0.0)


def test_an_entry_in_an_images_layer_that_is_used_meanwhile_stays(image):
    places = image.places
    os.utime(image.entry / MANIFEST)
    with pytest.raises(InUse, match="used"):
        remove(KEY, places, image.locks)
    assert sound(str(image.entry), True, 0.0)


def test_a_damaged_entry_in_an_images_layer_is_replaced(image):
    (image.entry / "add.cubin").write_bytes(b"")
    assert not image.publish()
    assert image.publish(repair=True)
    assert sound(str(image.entry), True, 0.0)


def test_what_is_a_thousand_directories_deep_breaks_no_removal(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8192), before[1]))
    try:
        for name in ("delete", "empty", "tree"):
            here = os.open(tmp_path, os.O_RDONLY)
            for _ in range(3000):
                os.mkdir(name, dir_fd=here)
                below = os.open(name, os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = below
            os.close(here)
        with Straight() as disk:
            delete(str(tmp_path / "delete"), disk)
            disk.act(str(tmp_path / "empty"), remove_tree_in)
        remove_tree(str(tmp_path / "tree"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        subprocess.run(["rm", "-rf", tmp_path], check=False)
