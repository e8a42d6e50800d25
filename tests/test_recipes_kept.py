"""Which entries of the store get a recipe, and which kernels `GPUCACHE_RECORD` tells of, under the real Triton.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.launches import another_process, kernel, launched
from support.ranks import Rank

from gpucache.kernels.recipe import from_text
from gpucache.kernels.recipe_lines import read_recipe_file
from gpucache.store.manifest import MANIFEST, RECIPE, read_manifest
from gpucache.store.recipe_file import read_recipe
from gpucache.triton import recorder, shared_kernel

pytestmark = pytest.mark.usefixtures("triton")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "recipes"


@pytest.fixture
def first(one_kernel, root):
    """One kernel, compiled through the plug-in for ``triton/0``."""
    one_kernel.at(root)


def entry(root):
    """The one entry of the store."""
    (path,) = (root / "gpucache/v1/store").glob("*/*")
    return path


def recipe(root):
    """The recipe of the one entry; None where it has none."""
    path = str(entry(root))
    data = read_recipe(path, read_manifest(path)[0])
    return None if data is None else from_text(data)


def lose_recipe(root):
    """Make of the one entry what an earlier gpucache has left."""
    path = entry(root)
    manifest, used = read_manifest(str(path))
    (path / RECIPE).unlink()
    views = list((root / "triton").glob("*/*"))
    made = path / "made"
    made.write_bytes(manifest._replace(recipe=None).encoded())
    os.utime(made, (used, used))
    for directory in views:
        os.link(made, directory / "made")
        (directory / "made").rename(directory / MANIFEST)
    made.rename(path / MANIFEST)


def recorded(file):
    return [one.key for one in read_recipe_file(str(file))]


def test_a_published_entry_carries_its_recipe_and_its_view_does_not(first, root):
    one = recipe(root)
    assert one.key == entry(root).name
    assert (one.kernel, one.function.qualname, one.launched) == ("scaled", "scaled", False)
    assert dict(one.constants) == {(3,): 1, (4,): 512}
    assert not list((root / "triton").rglob(RECIPE))


def test_what_stock_triton_left_gets_a_recipe_when_it_is_adopted(one_stock_kernel, root, ranks):
    one_stock_kernel.at(root)
    assert ranks().said()["compiled"] == 0
    assert recipe(root).key == entry(root).name


def test_an_entry_without_a_recipe_gets_one_when_it_is_taken_from_the_store(first, root, ranks):
    before = recipe(root)
    lose_recipe(root)
    assert recipe(root) is None
    assert ranks("triton/1").said()["compiled"] == 0
    assert recipe(root) == before


def test_a_hit_gives_an_entry_its_recipe_only_where_it_is_recorded(first, root, ranks, file):
    before = recipe(root)
    lose_recipe(root)
    assert ranks().said()["compiled"] == 0
    assert recipe(root) is None
    assert ranks(env={"GPUCACHE_RECORD": str(file)}).said()["compiled"] == 0
    assert recipe(root) == before
    assert recorded(file) == [before.key]


@pytest.mark.parametrize("broken", ["read_manifest", "add_recipe"])
def test_a_hit_whose_recipe_cannot_be_kept_is_a_hit(broken, monkeypatch, root, caplog):
    """Also where the disk does not answer, or a defect of ours raises."""
    key, files = kernel("a")
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)
    assert launched(key, files)[0] is False
    another_process(monkeypatch)
    monkeypatch.setenv("GPUCACHE_RECORD", str(root / "recipes"))
    monkeypatch.setattr(recorder, "recipe_text_of", lambda *_: b"{}")

    def breaks(*_, **__):
        raise (OSError(errno.EIO, "broken") if broken == "read_manifest" else ZeroDivisionError)

    monkeypatch.setattr(shared_kernel, broken, breaks)
    assert launched(key, files)[0] is True
    assert caplog.text.count("a recipe cannot be kept") == (broken == "add_recipe")


def test_hits_and_misses_of_several_ranks_are_recorded(first, root, ranks, file):
    env = {"GPUCACHE_RECORD": str(file)}
    started = [ranks(f"triton/{number}", count=3, env=env) for number in range(2)]
    for rank in started:
        rank.go()
    for rank in started:
        rank.said()
    keys = recorded(file)
    assert len(keys) == 3
    assert set(keys) == {path.name for path in (root / "gpucache/v1/store").glob("*/*")}
    assert len(file.read_bytes().splitlines()) >= 7
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("setting", ["GPUCACHE_REQUIRE_HIT", "TRITON_ALWAYS_COMPILE"])
def test_a_kernel_is_recorded_whatever_comes_of_it(setting, first, root, ranks, file):
    env = {"GPUCACHE_RECORD": str(file), setting: "1"}
    ranks(env=env).said()
    assert recorded(file) == [recipe(root).key]


def test_a_private_kernel_is_recorded_and_published_nowhere(root, ranks, file):
    root.mkdir()
    root.chmod(0o777)
    assert ranks(env={"GPUCACHE_RECORD": str(file)}).said()["compiled"] == 1
    assert len(recorded(file)) == 1
    assert not (root / "gpucache").exists()


@pytest.mark.parametrize("setting", ["GPUCACHE_SHARE=0", "USE_IR_LOC=ttir"])
def test_where_tritons_own_manager_acts_kernels_are_recorded_too(setting, root, ranks, file):
    name, value = setting.split("=")
    ranks(env={"GPUCACHE_RECORD": str(file), name: value}).said()
    assert len(recorded(file)) == 1


def test_disabled_nothing_is_recorded(root, ranks, file):
    ranks(env={"GPUCACHE_RECORD": str(file), "GPUCACHE_DISABLE": "1"}).said()
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_told_once_and_costs_no_kernel(root, ranks, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    rank: Rank = ranks(env={"GPUCACHE_RECORD": str(tmp_path / "fifo")}, count=2)
    assert rank.said()["compiled"] == 2
    assert rank.err.count("no file of recipes") == 1
    assert str(Path(tmp_path, "fifo")) in rank.err
