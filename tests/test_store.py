from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.every_call import SCRIPT
from support.processes import PATIENCE_S
from support.trees import FACTS, GROUP, KERNEL, KEY, OLD, Cache, set_used, used

from gpucache.layout import paths
from gpucache.store import manifest as manifest_module
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, Facts, Manifest, digest_of
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.recency import boot_time
from gpucache.store.stock import describe, stock_group


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


@pytest.fixture
def published(cache: Cache) -> Cache:
    assert cache.publish()
    return cache


@pytest.fixture
def linked(published: Cache) -> Cache:
    assert published.link()
    return published


@pytest.fixture
def mount(as_root: None) -> Iterator[Callable[[Path], Path]]:
    """Mount another file system for the length of a test."""
    points: list[Path] = []

    def put(point: Path) -> Path:
        point.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=0700,size=1m", "none", point], check=True
        )
        points.append(point)
        return point

    yield put
    for point in points:
        subprocess.run(["umount", "-l", point], check=True)


def found(directory: Path, verify: bool = False, boot: float = 0.0) -> Manifest | None:
    return sound(str(directory), verify, boot)


def group_paths(view: Path) -> dict[str, str]:
    paths_of: dict[str, str] = json.loads((view / GROUP).read_bytes())["child_paths"]
    return paths_of


def inodes(directory: Path, names: Mapping[str, Any]) -> dict[str, int]:
    return {name: (directory / name).stat().st_ino for name in names}


def flip(path: Path) -> None:
    """One bit, in place, as bad memory does it: size and time stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file is truncated": lambda entry: os.truncate(entry / "add.cubin", 100),
    "a file is empty": lambda entry: os.truncate(entry / "add.json", 0),
    "a file is missing": lambda entry: (entry / "add.cubin").unlink(),
    "a file is a directory": lambda entry: (
        (entry / "add.ptx").unlink(),
        (entry / "add.ptx").mkdir(),
    ),
    "a file leads nowhere": lambda entry: (
        (entry / "add.ptx").unlink(),
        (entry / "add.ptx").symlink_to("nowhere"),
    ),
    "a file has another content": lambda entry: (entry / "add.ptx").write_bytes(b".version 8.8"),
    "the manifest is missing": lambda entry: (entry / MANIFEST).unlink(),
    "the manifest is empty": lambda entry: os.truncate(entry / MANIFEST, 0),
    "the manifest is cut": lambda entry: os.truncate(entry / MANIFEST, 100),
}
GARBAGE = (
    b"null",
    b"[]",
    b"7",
    b"\xff\xfe",
    b"{}",
    b"[" * 100_000,
    b'{"version":2,"files":{"a":[1,2,"3"]}}',
    b'{"version":1,"files":{"a":[1,2,"3"]}}',
    json.dumps({"version": 1, "files": [], "kernel": "k", "group": None}).encode(),
)
WHOLE = {
    "version": 1,
    "kernel": "k",
    "group": None,
    "target": None,
    "triton_version": None,
    "compile_s": 1,
    "tag": "",
}


class TestPublish:
    def test_what_is_published_is_sound_and_names_all_that_is_known(self, published):
        manifest = found(published.entry)
        assert manifest is not None
        assert manifest.facts == FACTS
        assert manifest.origin == paths.host_name()
        assert published.whole(published.entry)

    def test_the_manifest_tells_each_files_size_time_and_digest(self, published):
        manifest = json.loads((published.entry / MANIFEST).read_bytes())
        for name, data in KERNEL.items():
            time_ns = (published.entry / name).stat().st_mtime_ns
            assert manifest["files"][name] == [len(data), time_ns, hashlib.sha256(data).hexdigest()]

    def test_it_writes_no_file_twice(self, cache):
        staged = cache.staged()
        publish_entry(str(cache.root), KEY, staged, FACTS, cache.staging, False)
        assert inodes(cache.entry, KERNEL) == {
            name: os.stat(path).st_ino for name, (path, _) in staged.items()
        }

    def test_what_was_staged_stays_where_it_was(self, cache):
        """Triton reads it again after `put_group`."""
        staged = cache.staged()
        publish_entry(str(cache.root), KEY, staged, FACTS, cache.staging, False)
        assert {name: Path(path).read_bytes() for name, (path, _) in staged.items()} == KERNEL

    def test_nothing_half_made_is_left(self, published):
        homes = [path for path in published.root.glob("gpucache/v1/tmp/*/*") if path.is_dir()]
        assert [set(os.listdir(home)) for home in homes] == [set(KERNEL)]  # what the compile staged
        assert not published.left()

    def test_every_directory_it_makes_is_private(self, cache):
        old = os.umask(0)
        try:
            cache.publish()
            cache.link()
        finally:
            os.umask(old)
        made = [
            cache.view.parent,
            *(path for path in cache.root.glob("gpucache/**") if path.is_dir()),
        ]
        assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}

    def test_the_first_complete_writer_wins(self, published):
        """The second is told that a whole entry is there, and does not touch it."""
        before = inodes(published.entry, [*KERNEL, MANIFEST])
        assert published.publish({**KERNEL, "add.cubin": b"another compile"})
        assert inodes(published.entry, [*KERNEL, MANIFEST]) == before
        assert published.whole(published.entry)

    def test_one_that_loses_at_the_last_moment_takes_the_winners(self, cache, monkeypatch):
        rename = os.rename

        def after_the_winner(made: str, target: str) -> None:
            if target == str(cache.entry):
                monkeypatch.setattr(os, "rename", rename)
                assert cache.publish()
            rename(made, target)

        monkeypatch.setattr(os, "rename", after_the_winner)
        assert cache.publish({**KERNEL, "add.cubin": b"the loser's"})
        assert cache.whole(cache.entry)
        assert not cache.quarantined()

    def test_of_eight_writers_at_once_one_wins_whole(self, cache):
        contents = [
            {name: data + bytes([number]) for name, data in KERNEL.items()} for number in range(8)
        ]
        start = threading.Barrier(8)

        def write(files: Mapping[str, bytes]) -> bool:
            start.wait(PATIENCE_S)
            return cache.publish(files) and cache.link()

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(write, contents))
        winner = contents[(cache.entry / "add.cubin").read_bytes()[-1]]
        assert cache.whole(cache.entry, winner)
        assert cache.whole(cache.view, winner)
        assert not cache.quarantined()
        assert not cache.left()

    def test_an_empty_directory_is_taken_over(self, cache):
        cache.entry.mkdir(parents=True)
        assert cache.publish()
        assert cache.whole(cache.entry)
        assert not cache.quarantined()

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_damaged_entry_is_replaced_under_the_keys_lock_only(self, published, damage):
        damage(published.entry)
        assert not published.publish()
        assert not published.quarantined()
        assert published.publish(repair=True)
        assert published.whole(published.entry)
        assert [path.name.split(".")[0] for path in published.quarantined()] == [KEY]

    def test_a_half_made_entry_is_replaced_under_the_keys_lock_only(self, cache):
        cache.entry.mkdir(parents=True)
        (cache.entry / "add.cubin").write_bytes(b"half")
        assert not cache.publish()
        assert os.listdir(cache.entry) == ["add.cubin"]
        assert cache.publish(repair=True)
        assert cache.whole(cache.entry)
        assert [(path / "add.cubin").read_bytes() for path in cache.quarantined()] == [b"half"]

    def test_a_flipped_bit_does_not_pass_for_an_earlier_writer(self, published):
        """Whoever publishes again has seen that the digests are wrong; sizes and times would say all is well."""
        flip(published.entry / "add.cubin")
        assert not published.publish()
        assert published.publish(repair=True)
        assert published.whole(published.entry)

    def test_a_file_in_its_place_is_moved_aside(self, cache):
        cache.entry.parent.mkdir(parents=True)
        cache.entry.write_text("mine")
        assert not cache.publish()
        assert cache.publish(repair=True)
        assert [path.read_text() for path in cache.quarantined()] == ["mine"]

    def test_an_entry_of_fewer_files_is_replaced_under_the_keys_lock_only(self, cache):
        """`TRITON_STORE_BINARY_ONLY` makes one, under the same key."""
        cache.publish({name: KERNEL[name] for name in ("add.json", "add.cubin")})
        assert not cache.publish()
        assert cache.publish(repair=True)
        assert cache.whole(cache.entry)

    def test_a_file_beside_the_kernels_needs_no_group(self, cache):
        library = {"cuda_utils.cpython-311-x86_64-linux-gnu.so": b"\x7fELF"}
        cache.publish(library, Facts(kernel="cuda_utils", group=None, tag="cpython-311"))
        cache.link()
        assert cache.whole(cache.view, library)
        assert sorted(os.listdir(cache.view)) == sorted([MANIFEST, *library])

    def test_a_kernel_may_be_named_entry(self, cache):
        files = {name.replace("add", "entry"): data for name, data in KERNEL.items()}
        cache.publish(files, Facts(kernel="entry", group="entry.json"))
        cache.link()
        assert cache.whole(cache.entry, files)
        assert cache.whole(cache.view, files)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
    def test_a_disk_that_refuses_is_told_and_the_store_is_as_it_was(
        self, cache, monkeypatch, number
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refusing(number))
            with pytest.raises(OSError) as caught:
                cache.publish()
        assert caught.value.errno == number
        assert not cache.entry.exists()
        assert cache.publish()


def refusing(number: int) -> Callable[..., None]:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


class TestSound:
    @pytest.mark.parametrize("which", ["entry", "view"])
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_damage_is_found(self, linked, damage, which):
        directory = getattr(linked, which)
        assert found(directory) is not None
        damage(directory)
        assert found(directory) is None

    @pytest.mark.parametrize("directory", ["absent", "empty", "file"])
    def test_where_there_is_no_entry_there_is_none(self, tmp_path, directory):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        assert found(tmp_path / directory) is None

    @pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
    def test_a_manifest_that_is_none_is_damage(self, published, text):
        (published.entry / MANIFEST).write_bytes(text)
        assert found(published.entry) is None
        assert published.publish(repair=True)
        assert published.whole(published.entry)

    @pytest.mark.parametrize(
        "files",
        [{}, [], 7, {"add.ptx": 7}, {"add.ptx": [1, 2]}, {"add.ptx": None}, {"\0": [1, 2, "3"]}],
    )
    def test_files_that_make_no_sense_are_damage(self, published, files):
        (published.entry / MANIFEST).write_text(json.dumps({**WHOLE, "files": files}))
        assert found(published.entry) is None
        assert found(published.entry, verify=True) is None

    @pytest.mark.parametrize("name", WHOLE)
    def test_a_manifest_that_lacks_something_is_damage(self, published, name):
        """A flipped bit in a name leaves JSON that parses."""
        text = (published.entry / MANIFEST).read_text()
        (published.entry / MANIFEST).write_text(text.replace(f'"{name}"', f'"{name}!"'))
        assert found(published.entry) is None

    def test_a_flipped_bit_is_found_by_verification_only(self, linked):
        """The limit of what size and time can tell."""
        flip(linked.view / "add.cubin")
        assert found(linked.view) is not None
        assert found(linked.view, verify=True) is None

    def test_a_flipped_bit_is_found_at_the_first_use_after_a_boot(self, linked):
        flip(linked.view / "add.cubin")
        assert found(linked.view, boot=used(linked.view) + 1) is None

    def test_the_first_use_after_a_boot_is_the_only_one_that_costs_digests(
        self, linked, monkeypatch
    ):
        """Also when the last use was a moment before the boot."""
        boot = time.time() - 10
        set_used(linked.view, boot - 10)
        assert found(linked.view, boot=boot) is not None
        monkeypatch.setattr(manifest_module, "digest_of", pytest.fail)
        assert found(linked.view, boot=boot) is not None

    def test_a_use_reads_nothing_but_the_manifest(self, linked, monkeypatch):
        monkeypatch.setattr(manifest_module, "digest_of", pytest.fail)
        assert found(linked.view) is not None

    def test_the_boot_lies_in_the_past_and_does_not_move(self):
        assert 0 < boot_time() < time.time()
        assert abs(boot_time() - boot_time()) < 1

    def test_a_use_is_stamped_when_the_last_stamp_is_older_than_five_minutes(self, linked):
        set_used(linked.view, time.time() - 310)
        before = time.time() - 1  # file times are the tick's
        assert found(linked.view) is not None
        assert used(linked.view) >= before

    def test_a_use_is_not_stamped_when_the_last_stamp_is_younger(self, linked):
        before = set_used(linked.view, time.time() - 200)
        assert found(linked.view) is not None
        assert used(linked.view) == before

    def test_a_use_of_one_view_stamps_the_store_and_all_views(self, linked):
        linked.link(linked.other_view)
        set_used(linked.view, OLD)
        found(linked.view)
        assert used(linked.entry) == used(linked.other_view) == used(linked.view) > OLD

    @pytest.mark.root
    def test_a_read_only_view_is_used_without_a_stamp(self, linked, tmp_path, mount):
        point = mount(tmp_path / "other")
        shutil.copytree(linked.view, point / KEY)
        before = set_used(point / KEY, OLD)
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for _ in range(2):  # copytree keeps times
            assert found(point / KEY) is not None
        assert used(point / KEY) == before

    @pytest.mark.root
    def test_a_read_only_copy_with_other_times_is_used(self, linked, tmp_path, mount):
        point = mount(tmp_path / "other")
        shutil.copytree(linked.view, point / KEY, copy_function=shutil.copyfile)
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for _ in range(2):
            assert found(point / KEY) is not None


class TestRelocation:
    @pytest.fixture
    def copy(self, linked: Cache) -> Path:
        """As ``cp -r`` makes it: with other times."""
        target = linked.root / "triton" / "7" / KEY
        shutil.copytree(linked.view, target, copy_function=shutil.copyfile)
        for name in KERNEL:
            os.utime(target / name, (OLD, OLD))
        return target

    def test_a_copy_with_other_times_is_sound_once_its_digests_are(self, linked, copy):
        assert found(copy) is not None
        assert linked.whole(copy)

    def test_its_manifest_is_renewed_so_that_the_next_use_costs_no_digests(self, copy, monkeypatch):
        found(copy)
        monkeypatch.setattr(manifest_module, "digest_of", pytest.fail)
        manifest = found(copy)
        assert manifest is not None
        assert manifest.facts == FACTS

    def test_its_origin_stays(self, linked, copy):
        text = (copy / MANIFEST).read_text().replace(paths.host_name(), "elsewhere")
        (copy / MANIFEST).write_text(text)
        found(copy)
        assert json.loads((copy / MANIFEST).read_text())["origin"] == "elsewhere"

    def test_its_group_names_the_new_place(self, copy):
        assert group_paths(copy) != {name: str(copy / name) for name in KERNEL}
        found(copy)
        assert group_paths(copy) == {name: str(copy / name) for name in KERNEL}

    def test_the_original_is_not_touched(self, linked, copy):
        found(copy)
        assert group_paths(linked.view) == {name: str(linked.view / name) for name in KERNEL}
        assert inodes(linked.view, [*KERNEL, MANIFEST]) == inodes(linked.entry, [*KERNEL, MANIFEST])

    def test_a_damaged_copy_is_not_renewed(self, copy):
        (copy / "add.cubin").write_bytes(b"other")
        assert found(copy) is None
        assert found(copy) is None

    def test_a_whole_cache_may_be_copied(self, linked, tmp_path):
        """Store and views part: what was one inode is several, and all are sound."""
        shutil.copytree(linked.root, tmp_path / "copy", copy_function=shutil.copyfile)
        assert linked.whole(tmp_path / "copy" / linked.entry.relative_to(linked.root))
        assert linked.whole(tmp_path / "copy" / linked.view.relative_to(linked.root))

    def test_a_moved_device_directory_is_sound(self, linked):
        """No time has changed; its paths are ours to join, whatever its group says."""
        linked.view.parent.rename(linked.root / "triton" / "7")
        assert linked.whole(linked.root / "triton" / "7" / KEY)

    def test_a_manifest_is_renewed_after_the_group(self, copy, monkeypatch):
        """Killed between the two, the next use does both again."""
        rename, done = os.rename, []

        def note(made: str, target: str) -> None:
            done.append(os.path.basename(target))
            rename(made, target)

        monkeypatch.setattr(os, "rename", note)
        found(copy)
        assert done == [GROUP, MANIFEST]


class TestView:
    def test_it_has_the_stores_inodes_and_a_group_of_its_own(self, linked):
        assert inodes(linked.view, [*KERNEL, MANIFEST]) == inodes(linked.entry, [*KERNEL, MANIFEST])
        assert sorted(os.listdir(linked.view)) == sorted([*KERNEL, MANIFEST, GROUP])
        assert group_paths(linked.view) == {name: str(linked.view / name) for name in KERNEL}
        assert not linked.left()

    def test_every_device_gets_its_own(self, linked):
        assert linked.link(linked.other_view)
        assert linked.whole(linked.other_view)
        assert group_paths(linked.other_view) == {
            name: str(linked.other_view / name) for name in KERNEL
        }

    def test_one_that_is_there_is_left_as_it_is(self, linked):
        before = inodes(linked.view, [*KERNEL, MANIFEST, GROUP])
        assert linked.link()
        assert linked.link(repair=True)
        assert inodes(linked.view, [*KERNEL, MANIFEST, GROUP]) == before

    def test_the_empty_directory_that_tritons_constructor_makes_is_filled(self, published):
        published.view.mkdir(parents=True)
        assert published.link()
        assert published.whole(published.view)

    def test_tritons_own_manager_hits_it(self, linked, stock):
        for view in (linked.view, linked.other_view):
            linked.link(view)
            group = stock(view.parent).get_group("add.json")
            assert group == {name: str(view / name) for name in KERNEL}

    def test_what_triton_writes_into_a_view_reaches_no_other(self, linked, stock):
        """It replaces files, and ours are only linked."""
        stock(linked.view.parent).put(b"compiled again", "add.cubin")
        assert linked.whole(linked.entry)
        assert found(linked.view) is None

    @pytest.mark.parametrize(
        "number", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS]
    )
    def test_where_no_link_can_be_made_it_is_a_copy(self, published, monkeypatch, number):
        monkeypatch.setattr(os, "link", refusing(number))
        assert published.link()
        assert published.whole(published.view)
        assert not set(inodes(published.view, KERNEL).values()) & set(
            inodes(published.entry, KERNEL).values()
        )

    def test_a_copy_whose_times_are_coarser_has_a_manifest_of_its_own(self, published, monkeypatch):
        def coarse(source: str, target: str, **_: bool) -> None:
            os.utime(target, (OLD // 2 * 2, OLD // 2 * 2))

        monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
        monkeypatch.setattr(shutil, "copystat", coarse)
        assert published.link()
        monkeypatch.setattr(manifest_module, "digest_of", pytest.fail)
        assert found(published.view) is not None

    @pytest.mark.root
    def test_on_another_file_system_it_is_a_copy(self, published, tmp_path, mount, stock):
        view = mount(tmp_path / "other") / "0" / KEY
        assert published.link(view)
        assert os.stat(view).st_dev != os.stat(published.entry).st_dev
        assert published.whole(view)
        assert stock(view.parent).get_group("add.json") == {
            name: str(view / name) for name in KERNEL
        }

    @pytest.mark.root
    def test_on_another_file_system_a_damaged_one_is_mended(self, published, tmp_path, mount):
        view = mount(tmp_path / "other") / "0" / KEY
        published.link(view)
        flip(view / "add.cubin")
        assert not published.link(view)
        assert published.link(view, repair=True)
        assert published.whole(view)
        assert not published.left()

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_damaged_one_is_replaced_under_the_keys_lock_only(
        self, published, monkeypatch, damage
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refusing(errno.EXDEV))  # so that the store stays whole
            published.link()
        damage(published.view)
        os.utime(published.view / "add.ptx", (OLD, OLD), follow_symlinks=False)
        age(published.view)
        assert not published.link()
        assert published.link(repair=True)
        assert published.whole(published.view)
        assert len(published.quarantined()) == 1

    def test_one_whose_inodes_went_bad_with_the_stores_is_replaced(self, linked):
        """After a power cut both have files of the right size with nothing in them."""
        flip(linked.entry / "add.cubin")
        assert linked.publish(repair=True)
        assert found(linked.view, verify=True) is None
        assert not linked.link()
        assert linked.link(repair=True)
        assert linked.whole(linked.view)

    def test_a_directory_that_another_manager_is_filling_is_left_alone(self, published):
        published.view.mkdir(parents=True)
        (published.view / "add.ttir").write_text("a stage")
        assert not published.link()
        assert not published.link(repair=True)
        assert os.listdir(published.view) == ["add.ttir"]

    def test_a_directory_that_another_manager_left_half_filled_is_replaced(self, published):
        published.view.mkdir(parents=True)
        (published.view / "add.ttir").write_text("a stage")
        age(published.view)
        assert not published.link()
        assert published.link(repair=True)
        assert published.whole(published.view)

    def test_one_that_another_manager_begins_meanwhile_is_not_moved_aside(
        self, published, monkeypatch
    ):
        """Twice found in the way: the second time it is not what the caller looked at."""
        published.view.mkdir(parents=True)
        (published.view / "add.ttir").write_text("old")
        age(published.view)
        rename = os.rename

        def with_another(source: str, target: str) -> None:
            rename(source, target)
            if source == str(published.view):
                monkeypatch.setattr(os, "rename", rename)
                published.view.mkdir()
                (published.view / "add.ttir").write_text("a stage")

        monkeypatch.setattr(os, "rename", with_another)
        assert not published.link(repair=True)
        assert (published.view / "add.ttir").read_text() == "a stage"

    def test_an_entry_that_vanishes_meanwhile_is_told_and_leaves_nothing(self, published):
        manifest = found(published.entry)
        shutil.rmtree(published.entry)
        with pytest.raises(FileNotFoundError):
            link_view(
                str(published.root), str(published.entry), str(published.view), manifest, False
            )
        assert not os.listdir(published.view.parent)

    @pytest.mark.root
    def test_a_full_disk_is_told_and_leaves_nothing(self, published, tmp_path, mount):
        point = mount(tmp_path / "other")
        with pytest.raises(OSError, match="No space left"):
            (point / "ballast").write_bytes(bytes(2 << 20))
        with pytest.raises(OSError) as caught:
            published.link(point / "0" / KEY)
        assert caught.value.errno == errno.ENOSPC
        assert not os.listdir(point / "0")


def age(directory: Path) -> None:
    for path in directory.iterdir():
        os.utime(path, (OLD, OLD), follow_symlinks=False)


# ---- Triton's own manager, and torch

Stock = Callable[[Path], Any]


class TestStockGroup:
    @pytest.fixture
    def view(self, cache: Cache, stock: Stock) -> Path:
        """As Triton's own manager leaves it."""
        manager = stock(cache.view.parent)
        manager.put_group(
            "add.json", {name: manager.put(data, name) for name, data in KERNEL.items()}
        )
        return cache.view

    def test_a_whole_group_is_adopted(self, view):
        assert stock_group(str(view), "add.json") == {name: f"{view}/{name}" for name in KERNEL}

    def test_a_group_is_adopted_where_it_is_now_not_where_it_was_made(self, view, cache):
        view.parent.rename(cache.root / "triton" / "7")
        moved = cache.root / "triton" / "7" / KEY
        assert stock_group(str(moved), "add.json") == {name: f"{moved}/{name}" for name in KERNEL}

    @pytest.mark.parametrize("name", [*KERNEL, GROUP])
    def test_without_one_of_its_files_it_is_not_whole(self, view, name):
        (view / name).unlink()
        assert stock_group(str(view), "add.json") is None

    @pytest.mark.parametrize("name", [*KERNEL, GROUP])
    def test_with_an_empty_file_it_is_not_whole(self, view, name):
        os.truncate(view / name, 0)
        assert stock_group(str(view), "add.json") is None

    @pytest.mark.parametrize(
        "text", [b"{", b"null", b"[]", b"\xff", b"{}", b'{"child_paths": 7}', b"[" * 100_000]
    )
    @pytest.mark.parametrize("name", ["add.json", GROUP])
    def test_with_json_that_makes_no_sense_it_is_not_whole(self, view, name, text):
        (view / name).write_bytes(text)
        assert stock_group(str(view), "add.json") is None

    def test_a_group_of_another_kernel_is_another(self, view):
        assert stock_group(str(view), "sub.json") is None

    def test_a_group_without_its_metadata_file_is_not_whole(self, view):
        (view / GROUP).write_text(
            json.dumps({"child_paths": {"add.cubin": str(view / "add.cubin")}})
        )
        assert stock_group(str(view), "add.json") is None

    @pytest.mark.parametrize("left", [(), ("add.cubin",), ("add.json",), (GROUP,)], ids=str)
    def test_what_crashes_leave_is_not_whole(self, view, left):
        for name in {*KERNEL, GROUP} - {*left}:
            (view / name).unlink()
        assert stock_group(str(view), "add.json") is None

    def test_a_directory_that_is_not_there_has_none(self, tmp_path):
        assert stock_group(str(tmp_path / "absent"), "add.json") is None

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_damaged_one_of_ours_is_not_taken_for_tritons(self, linked, damage):
        damage(linked.view)
        if (linked.view / MANIFEST).exists():
            assert stock_group(str(linked.view), "add.json") is None
        else:  # then Triton's own rules are all there is to judge by, and they are met
            assert stock_group(str(linked.view), "add.json") is not None

    def test_described_it_is_a_view(self, view, cache, stock):
        files = stock_group(str(view), "add.json")
        staged = {name: (path, digest_of(path)) for name, path in files.items()}
        assert publish_entry(str(cache.root), KEY, staged, FACTS, cache.staging, repair=False)
        describe(str(view), {name: sha256 for name, (_, sha256) in staged.items()}, FACTS)
        assert cache.whole(view)
        assert cache.whole(cache.entry)
        assert inodes(view, KERNEL) == inodes(cache.entry, KERNEL)
        assert cache.link()
        assert stock(view.parent).get_group("add.json") == {
            name: str(view / name) for name in KERNEL
        }
        assert not cache.left()

    def test_described_where_it_was_copied_to_it_names_the_new_place(self, view, cache, stock):
        moved = cache.root / "triton" / "7" / KEY
        shutil.copytree(view, moved)
        shutil.rmtree(view)
        files = stock_group(str(moved), "add.json")
        describe(str(moved), {name: digest_of(path) for name, path in files.items()}, FACTS)
        assert stock(moved.parent).get_group("add.json") == {
            name: str(moved / name) for name in KERNEL
        }

    def test_a_file_that_vanishes_meanwhile_is_told_and_nothing_changes(self, view):
        digests = dict.fromkeys(stock_group(str(view), "add.json"), "")
        before = sorted(os.listdir(view))
        with pytest.raises(FileNotFoundError):
            describe(str(view), {**digests, "gone": ""}, FACTS)
        assert sorted(os.listdir(view)) == before
        assert os.listdir(view.parent) == [KEY]


BUNDLE = """
import os, sys
import torch
from torch._inductor import config
from torch._inductor.triton_bundler import TritonBundler
key, there, elsewhere = sys.argv[1:]
os.environ["TRITON_CACHE_DIR"] = there
with config.patch(bundle_triton_into_fx_graph_cache=True):
    TritonBundler.begin_compile()
    TritonBundler.put(key, 0)
    bundle, told = TritonBundler.collect()
    os.environ["TRITON_CACHE_DIR"] = elsewhere
    emitted = TritonBundler.read_and_emit(bundle)
print(told.cached_kernel_names, emitted.cached_kernel_names)
"""


@pytest.mark.torch
def test_torch_collects_a_view_and_emits_it_elsewhere(linked, python, stock, tmp_path):
    """Where it is sound, and its group names the new place."""
    done = python(
        BUNDLE,
        KEY,
        linked.view.parent,
        tmp_path / "elsewhere",
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['add'] ['add']"
    emitted = tmp_path / "elsewhere" / KEY
    assert sorted(os.listdir(emitted)) == sorted(os.listdir(linked.view))
    expected = {name: str(emitted / name) for name in KERNEL}
    assert stock(emitted.parent).get_group("add.json") == expected
    assert linked.whole(emitted)
    assert group_paths(emitted) == expected


# ---- every system call

PUBLISH = (
    SCRIPT
    + """
import hashlib
from gpucache.disk.staging import Staging
from gpucache.store.manifest import Facts, entry_path
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.lookup import sound
root, view, key, repair = sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] == "True"
files = {name: bytes.fromhex(data) for name, data in json.loads(sys.argv[6]).items()}
staging = Staging(root + "/gpucache/v1/tmp")
home = staging.directory()
staged = {}
for name, data in files.items():
    with open(home + "/" + name, "wb") as file:
        file.write(data)
    staged[name] = (home + "/" + name, hashlib.sha256(data).hexdigest())
facts = Facts(kernel="add", group="add.json")
entry = entry_path(root, key)
mark("begin")
assert publish_entry(root, key, staged, facts, staging, repair)
assert link_view(root, entry, view, sound(entry, False, 0.0), repair)
mark("end")
"""
)


class TestEverySystemCall:
    @pytest.mark.parametrize("damaged", [False, True], ids=["from nothing", "over damaged ones"])
    def test_killed_at_any_of_them_entry_and_view_are_absent_or_whole(self, every_call, damaged):
        """SIGKILL before each call that changes the disk; what was damaged is still so, or absent, or whole."""
        files = json.dumps({name: data.hex() for name, data in KERNEL.items()})
        caches = {}

        def start(home: Path) -> list[object]:
            cache = caches[home] = Cache(home)
            if damaged:
                cache.publish()
                cache.link()
                os.truncate(cache.entry / "add.cubin", 1)
            return [cache.root, cache.view, KEY, damaged, files]

        def check(home: Path, line: str) -> None:
            cache = caches[home]
            for directory in (cache.entry, cache.view):
                assert as_it_may_be(cache, directory, damaged), (directory, line)
            assert cache.publish(repair=damaged), line
            assert cache.link(repair=damaged), line
            assert cache.whole(cache.entry), line
            assert cache.whole(cache.view), line

        names = every_call.killed_everywhere(PUBLISH, start, check, least=15)
        assert names & {"link", "linkat"}
        assert names & {"rename", "renameat", "renameat2"}


def as_it_may_be(cache: Cache, directory: Path, damaged: bool) -> bool:
    if not directory.exists() or not os.listdir(directory):
        return True
    if damaged and (directory / "add.cubin").stat().st_size == 1:
        return found(directory) is None
    return cache.whole(directory)


def test_a_use_heals_the_stamp_of_a_wrong_clock(cache):
    """It would look used for a month, and take the place of what is."""
    assert cache.publish()
    set_used(cache.entry, time.time() + 30 * 86400)
    assert sound(str(cache.entry), False, 0.0)
    assert abs((cache.entry / MANIFEST).stat().st_mtime - time.time()) < 60
