"""What is packed is pinned, read again and compared with what was published; nothing of it is changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.trees import FACTS, KERNEL, KEY, METADATA, Cache, Tree, left_by_stock
from support.users import ADA

from gpucache.archive.collect import Collected, NotCollected, collect
from gpucache.archive.fits import here
from gpucache.disk.staging import Staging
from gpucache.store.manifest import MANIFEST, RECIPE, Facts, entry_path, single_key
from gpucache.store.publish import publish_entry

NAMES = sorted(KERNEL)
LONG_AGO = 1_700_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path)
    assert made.publish()
    assert made.link()
    return made


def collected(cache: Cache, path: Path | None = None, **options) -> Collected:
    return collect(str(path or cache.entry), cache.staging, **options)


def refused(cache: Cache, path: Path | None = None) -> str:
    pinned = list((cache.root / "gpucache/v1/tmp").glob("*/*"))
    with pytest.raises(NotCollected) as error:
        collected(cache, path)
    assert list((cache.root / "gpucache/v1/tmp").glob("*/*")) == pinned  # nothing stays pinned
    return error.value.why


class TestStored:
    def test_it_is_what_was_published(self, cache):
        one = collected(cache)
        assert (one.entry.key, one.entry.kind, one.entry.facts) == (KEY, "kernel", FACTS)
        assert [file.name for file in one.entry.files] == NAMES
        for file in one.entry.files:
            with one.opened(file) as source:
                assert source.read() == KERNEL[file.name]

    def test_its_files_are_pinned_by_second_names_until_they_are_let_go(self, cache):
        before = (cache.entry / "add.cubin").stat()
        one = collected(cache)
        assert (cache.entry / "add.cubin").stat().st_nlink == before.st_nlink + 1
        assert os.path.samestat(os.stat(one.paths["add.cubin"]), before)
        one.unpin()
        one.unpin()
        assert not os.path.exists(one.pinned)
        assert (cache.entry / "add.cubin").stat().st_nlink == before.st_nlink

    def test_what_is_removed_meanwhile_is_packed_all_the_same(self, tmp_path):
        tree = Tree(tmp_path)
        one = collected(tree)
        tree.remove()
        assert not tree.entry.exists()
        with one.opened(one.entry.files[0]) as source:
            assert source.read() == KERNEL[NAMES[0]]

    def test_a_view_gives_the_same_as_its_entry(self, cache):
        assert collected(cache, cache.view).entry == collected(cache).entry

    def test_slim_leaves_out_what_no_launch_needs(self, cache):
        files = collected(cache, slim=True).entry.files
        assert [file.name for file in files] == ["add.cubin", "add.json"]

    def test_no_use_is_stamped(self, cache):
        os.utime(cache.entry / MANIFEST, (LONG_AGO, LONG_AGO))
        for name in KERNEL:
            os.utime(cache.entry / name, (LONG_AGO, LONG_AGO))
        collected(cache, cache.view).unpin()
        collect(str(cache.entry), None)
        assert (cache.entry / MANIFEST).stat().st_mtime == LONG_AGO
        assert {(cache.entry / name).stat().st_atime for name in KERNEL} == {LONG_AGO}

    def test_a_recipe_is_carried_without_the_path_of_its_file(self, tmp_path):
        from support.recipes import recipe

        from gpucache.kernels.recipe import from_text, to_text

        text = to_text(recipe(key=KEY))
        one = collected(Tree(tmp_path, recipe=text))
        assert one.entry.recipe.name == RECIPE
        with one.opened(one.entry.recipe) as source:
            carried = source.read()
        assert len(carried) == one.entry.recipe.size_bytes
        assert from_text(carried).function.file == "kernels/add.py"

    def test_a_damaged_recipe_is_left_out_and_the_entry_taken(self, tmp_path):
        tree = Tree(tmp_path, recipe=b"no recipe")
        assert collected(tree).entry.recipe is None
        assert (tree.entry / RECIPE).exists()

    def test_a_manifest_of_an_older_gpucache_says_no_key_and_is_known_by_its_metadata(self, cache):
        said = json.loads((cache.entry / MANIFEST).read_text())
        del said["key"]
        (cache.entry / MANIFEST).unlink()
        (cache.entry / MANIFEST).write_text(json.dumps(said))
        assert collected(cache).entry.key == KEY


class TestDamage:
    def test_an_entry_that_is_gone_is_told(self, cache):
        shutil.rmtree(cache.entry)
        assert refused(cache) == "gone"

    def test_a_file_that_is_gone_is_told(self, cache):
        (cache.entry / "add.cubin").unlink()
        assert refused(cache) == "gone"

    def test_a_file_that_may_not_be_read_is_told(self, cache, monkeypatch):
        def denied(path: str) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        monkeypatch.setattr("gpucache.archive.collect.digest", denied)
        assert refused(cache) == "unreadable"

    def test_a_disk_that_does_not_answer_is_no_damage(self, cache, monkeypatch):
        def failed(path: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

        monkeypatch.setattr("gpucache.archive.collect.digest", failed)
        with pytest.raises(OSError, match="Input/output error"):
            collected(cache)

    @pytest.mark.parametrize("what", ["other bytes", "FIFO", "link", "directory"])
    def test_a_file_that_is_not_what_was_published_is_told(self, what, cache):
        path = cache.entry / "add.cubin"
        path.unlink()
        if what == "other bytes":
            path.write_bytes(b"other")
        elif what == "FIFO":
            os.mkfifo(path)
        elif what == "directory":
            path.mkdir()
        else:
            path.symlink_to(sys.executable)
        assert refused(cache) == "damaged"

    def test_an_entry_under_the_name_of_another_key_is_told(self, cache):
        other = cache.entry.with_name("B" * 52)
        cache.entry.rename(other)
        assert refused(cache, other) == "another key"

    def test_metadata_of_another_key_are_told(self, tmp_path):
        cache = Cache(tmp_path)
        metadata = METADATA.replace(b"{", b'{"hash":"%s",' % (b"ab" * 32), 1)
        assert cache.publish({**KERNEL, "add.json": metadata})
        assert refused(cache) == "another key"

    @pytest.mark.parametrize("said", [{"target": "cuda:80"}, {"triton_version": "3.6.0"}])
    def test_a_manifest_that_its_metadata_belie_is_told(self, said, tmp_path):
        cache = Cache(tmp_path)
        metadata = METADATA.replace(b"{", b'{"triton_version":"3.9.0",', 1)
        assert cache.publish({**KERNEL, "add.json": metadata}, FACTS._replace(**said))
        assert refused(cache) == "damaged"

    def test_what_a_manifest_leaves_out_the_metadata_say(self, tmp_path):
        cache = Cache(tmp_path)
        metadata = METADATA.replace(b"{", b'{"triton_version":"3.9.0",', 1)
        facts = FACTS._replace(target=None, triton_version=None)
        assert cache.publish({**KERNEL, "add.json": metadata}, facts)
        assert collected(cache).entry.facts == FACTS

    def test_one_for_which_a_pack_would_be_refused_is_told_alone(self, tmp_path):
        cache = Cache(tmp_path)
        assert cache.publish(KERNEL, FACTS._replace(tag="t" * 1001))
        assert refused(cache) == "odd"

    def test_a_single_file_without_a_manifest_is_not_taken_for_stock_tritons(self, tmp_path):
        cache = Cache(tmp_path)
        name = f"launcher.{here().abi}.so"
        path = cache.entry.with_name(single_key(KEY, name, ""))
        path.mkdir(parents=True)
        (path / name).write_bytes(Path(sys.executable).resolve().read_bytes())
        assert refused(cache, path) == "damaged"

    def test_a_torn_manifest_is_told(self, cache):
        os.truncate(cache.entry / MANIFEST, 20)
        assert refused(cache) == "damaged"


class TestStock:
    def test_what_stock_triton_left_is_taken_with_what_its_metadata_say(self, cache):
        directory = left_by_stock(cache.root / "triton/1", "C" * 52)
        one = collected(cache, directory)
        assert one.entry.facts == Facts("add", "add.json", "cuda:90", None)
        assert [file.name for file in one.entry.files] == NAMES  # and no __grp__

    def test_its_access_times_stay(self, cache):
        directory = left_by_stock(cache.root / "triton/1", "C" * 52)
        for path in directory.iterdir():
            os.utime(path, (LONG_AGO, LONG_AGO))
        one = collected(cache, directory)
        for file in one.entry.files:
            with one.opened(file) as source:
                source.read()
        assert {path.stat().st_atime for path in directory.iterdir()} == {LONG_AGO}

    def test_half_a_group_is_told(self, cache):
        directory = left_by_stock(cache.root / "triton/1", "C" * 52)
        (directory / "add.cubin").write_bytes(b"")
        assert refused(cache, directory) == "damaged"


class TestSingleFiles:
    """What stands for itself is packed where it can be told where it may be used."""

    @pytest.fixture
    def publish(self, cache: Cache) -> Iterator[object]:
        def put(name: str, data: bytes, tag: str = "") -> Path:
            key = single_key(KEY, name, tag)
            facts = Facts(name, None, tag=tag)
            assert publish_entry(
                str(cache.root), key, cache.staged({name: data}), facts, cache.staging, False
            )
            return Path(entry_path(str(cache.root), key))

        return put

    def test_a_library_tells_processor_python_and_libc(self, cache, publish):
        name = f"launcher.{here().abi}.so"
        data = Path(sys.executable).resolve().read_bytes()
        one = collected(cache, publish(name, data))
        assert (one.entry.kind, one.entry.key) == ("library", KEY)
        assert one.entry.fits == {
            "machine": here().machine,
            "abi": here().abi,
            "libc": here().libc,
        }
        assert one.entry.store_key == single_key(KEY, name, "")

    def test_of_one_without_an_abi_in_its_name_the_tag_tells(self, cache, publish):
        data = Path(sys.executable).resolve().read_bytes()
        path = publish("launcher.so", data, "cpython-310-x86_64-linux-gnu-glibc-2.31")
        fits = collected(cache, path).entry.fits
        assert (fits["abi"], fits["libc"]) == ("cpython-310-x86_64-linux-gnu", "glibc-2.31")

    @pytest.mark.parametrize(
        ("name", "data", "why"),
        [
            ("launcher.so", None, "unknown library"),
            ("launcher.cpython-311-x86_64-linux-gnu.so", b"#!/bin/sh", "unknown library"),
            ("launcher.cpython-311-x86_64-linux-gnu.so", b"\x7fELF", "damaged"),
            ("notes.txt", b"text", "kind"),
        ],
    )
    def test_what_nobody_can_place_is_told(self, name, data, why, cache, publish):
        content = Path(sys.executable).resolve().read_bytes() if data is None else data
        assert refused(cache, publish(name, content)) == why

    def test_an_autotuners_result_tells_its_device(self, cache, publish):
        kind = "sm_90-16896-NVIDIA H100"
        one = collected(cache, publish("k.autotune.json", b"{}", kind))
        assert (one.entry.kind, one.entry.fits) == ("autotune", {"device": kind})

    def test_one_that_was_measured_nobody_knows_where_is_told(self, cache, publish):
        path = publish("k.autotune.json", b"{}", "only-0123456789abcdef")
        assert refused(cache, path) == "unknown device"

    def test_a_library_of_stock_tritons_is_taken_if_its_name_tells_the_abi(self, cache):
        name = f"launcher.{here().abi}.so"
        directory = cache.root / "triton/1" / ("C" * 52)
        directory.mkdir(parents=True)
        (directory / name).write_bytes(Path(sys.executable).resolve().read_bytes())
        entry = collected(cache, directory).entry
        assert (entry.kind, entry.key, entry.facts) == ("library", "C" * 52, Facts(name, None))
        (directory / name).rename(directory / "launcher.so")
        assert refused(cache, directory) == "unknown library"

    def test_an_autotuners_result_of_stock_tritons_is_of_an_unknown_device(self, cache):
        directory = cache.root / "triton/1" / ("C" * 52)
        directory.mkdir(parents=True)
        (directory / "k.autotune.json").write_text("{}")
        assert refused(cache, directory) == "unknown device"


class TestWithoutPins:
    def test_on_a_read_only_disk_files_are_read_where_they_are(self, cache, mount, tmp_path):
        import subprocess

        point = mount(tmp_path / "image", "--bind", cache.root)
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        entry = point / cache.entry.relative_to(cache.root)
        one = collect(str(entry), Staging(f"{point}/gpucache/v1/tmp"))
        assert one.pinned is None
        assert one.paths["add.cubin"] == f"{entry}/add.cubin"

    def test_another_users_files_are_read_too(self, cache, as_root):
        for path in cache.entry.iterdir():
            os.chown(path, ADA, ADA)
        one = collected(cache)
        assert [file.name for file in one.entry.files] == NAMES
