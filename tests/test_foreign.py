"""Device directories outside the root: remembered, bounded, and no order to delete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, SPAWN
from support.trees import OLD, everything_below, planned, pruned, set_used
from support.users import ADA
from support.writers import put_kernel

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.node import node_id
from gpucache.errors import ProvisionError
from gpucache.report.cache_report import scan
from gpucache.report.find import find_entries
from gpucache.store import foreign
from gpucache.store.counting import counted
from gpucache.store.foreign import foreign_directories, forget_gone, remember
from gpucache.store.limit import Limit
from gpucache.store.manifest import entry_path
from gpucache.store.size import updated
from gpucache.triton import manager

KEYS = ["A" * 52, "B" * 52]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(foreign, "_remembered", set())
    monkeypatch.setattr(manager, "_locations", {})


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where vLLM has its device directories."""
    return tmp_path / "vllm" / "rank_0_0" / "triton_cache"


@pytest.fixture
def put(
    root: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], list[Path]]:
    """Put two kernels with a device directory, as one process does; the views of those there."""

    def put_in(directory: Path = elsewhere) -> list[Path]:
        monkeypatch.setattr(manager, "_locations", {})
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(directory))
        for key in KEYS:
            if manager.DeviceCacheManager(key).get_group("add.json") is None:
                put_kernel(key)
            set_used(Path(entry_path(str(root), key)), OLD)
        return [directory / key for key in KEYS]

    return put_in


def keeping(root: Path, limit_bytes: int) -> Limit:
    return Limit(str(root), LockPlace(str(root)), limit_bytes)


def notes(root: Path) -> list[Path]:
    return sorted((root / "gpucache/v1/foreign").glob("*"))


def paths(root: Path) -> list[str]:
    return [one.path for one in foreign_directories(str(root))]


@pytest.fixture
def provisioned(root: Path) -> Path:
    """A root in which notes can be staged."""
    (root / "gpucache/v1/tmp").mkdir(parents=True)
    return root


def note(root: Path, path: object, name: str | None = None, user: int | None = None) -> Path:
    """A note as whoever may write to the root could leave it."""
    user = os.geteuid() if user is None else user
    place = root / "gpucache/v1/foreign"
    place.mkdir(parents=True, exist_ok=True)
    made = place / (name or f"{node_id()}.{user}.{os.urandom(16).hex()}.json")
    made.write_text(json.dumps({"version": 1, "path": path}))
    os.chown(made, user, -1)
    return made


def bytes_of(*places: Path) -> int:
    """What is taken by all files, each inode once."""
    found = {}
    for place in places:
        for path in place.rglob("*"):
            if path.is_file():
                found[path.stat().st_ino] = path.stat().st_size
    return sum(found.values())


class TestBounded:
    def test_a_prune_frees_the_bytes_of_views_outside_the_root(self, put, root, elsewhere):
        views = put()
        made = planned(root, max_entries=0)
        assert made.foreign == {str(elsewhere): 2}
        before = bytes_of(root, elsewhere)
        done = made.execute()
        assert (done.entries, done.skipped) == (2, ())
        assert not any(view.exists() for view in views)
        assert done.freed.physical_bytes == made.physical_bytes
        assert before - bytes_of(root, elsewhere) >= made.physical_bytes > 8000
        assert list(elsewhere.iterdir()) == []

    @pytest.mark.parametrize("below", ["helion/triton/0", "jit/helion/triton/1", "triton/a/b"])
    def test_so_it_does_of_views_below_the_root_where_no_device_directory_is(
        self, put, root, below
    ):
        """As Helion makes them, which puts its cache into TorchInductor's."""
        views = put(root / below)
        made = planned(root, max_entries=0)
        assert len(made.removing) == 2
        before = bytes_of(root)
        made.execute()
        assert not any(view.exists() for view in views)
        assert before - bytes_of(root) >= made.physical_bytes > 8000

    def test_so_does_the_limit_which_counts_them_as_it_counts_its_own(self, put, root, elsewhere):
        views = put()
        size = counted(str(root))
        store = bytes_of(root / "gpucache/v1/store")
        assert size == store + 2 * 1024
        kept = keeping(root, 1)
        updated(str(root), size, anew=True)
        kept.turn()
        assert not any(view.exists() for view in views)
        assert updated(str(root), 0).size_bytes == counted(str(root)) == 0

    def test_ls_and_du_and_a_look_at_one_key_show_them(self, put, root, elsewhere):
        put()
        put(root / "triton/0")
        seen = scan(str(root))
        assert [one.name for one in seen.devices] == ["0", str(elsewhere)]
        for entry in (
            *seen.entries,
            *find_entries(str(root), KEYS[0]),
            *find_entries(str(root), "AAA"),
        ):
            assert entry.directories == ("0", str(elsewhere))
            assert entry.held_bytes == 0
        (row,) = (one for one in seen.usage if one.name == str(elsewhere))
        assert (row.files, row.physical_bytes) == (10, 2 * (row.physical_bytes // 2))
        assert row.logical_bytes > 8000 > row.physical_bytes

    def test_an_entry_that_is_used_there_stays(self, put, root, elsewhere):
        first, second = put()
        set_used(first, time.time())
        assert pruned(root, max_entries=0).entries == 1
        assert first.exists()
        assert not second.exists()

    def test_what_is_used_there_between_plan_and_removal_stays(self, put, root):
        first, _ = put()
        made = planned(root, max_entries=0)
        set_used(first, time.time())
        assert made.execute().entries == 1
        assert first.exists()

    def test_entries_are_made_smaller_there_too(self, put, root, elsewhere):
        views = put()
        assert pruned(root, keep_binaries=True).slimmed == 2
        for view in views:
            assert not (view / "add.ptx").exists()
            assert (view / "add.cubin").stat().st_nlink == 2

    def test_of_single_files_only_the_view_of_the_entry_goes(self, root, elsewhere, monkeypatch):
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(elsewhere))
        made = manager.DeviceCacheManager("C" * 52)
        assert made.get_file("one.bin") is None
        made.put(b"one", "one.bin")
        del made
        assert (elsewhere / ("C" * 52)).exists()
        for path in root.glob("gpucache/v1/store/*/*"):
            set_used(path, OLD)
        assert pruned(root, max_entries=0).entries == 1
        assert not (elsewhere / ("C" * 52)).exists()


class TestCopies:
    """On another file system a view is a copy, which is told by what its manifest says."""

    @pytest.fixture
    def views(self, put, root, elsewhere, mount) -> list[Path]:
        mount(elsewhere, "-t", "tmpfs", "-o", "mode=700", "tmpfs")
        # Or a thread counts what is there while the copies are made, and sets the total without one of them.
        updated(str(root), 0, anew=True)
        return put()

    def outdate(self, views: list[Path]) -> None:
        for view in views:
            set_used(view, OLD)

    def test_they_are_listed_counted_and_pruned_with_their_entries(self, views, root, elsewhere):
        self.outdate(views)
        for entry in scan(str(root)).entries:
            assert entry.directories == (str(elsewhere),)
        assert find_entries(str(root), KEYS[0])[0].directories == (str(elsewhere),)
        made = planned(root, max_entries=0)
        assert made.foreign == {str(elsewhere): 2}
        before = bytes_of(root, elsewhere)
        done = made.execute()
        assert (done.entries, done.skipped) == (2, ())
        assert not any(view.exists() for view in views)
        assert before - bytes_of(root, elsewhere) >= done.freed.physical_bytes > 16000

    def test_the_limit_counts_all_their_bytes_as_they_are_made_and_evicts_them(self, views, root):
        self.outdate(views)
        size = counted(str(root))
        assert size == bytes_of(root / "gpucache/v1/store", *views)
        assert abs(updated(str(root), 0).size_bytes - size) < 1024, "as they were made"
        updated(str(root), size, anew=True)
        keeping(root, 1).turn()
        assert not any(view.exists() for view in views)
        assert updated(str(root), 0).size_bytes == counted(str(root)) == 0

    def test_a_use_of_a_copy_keeps_its_entry(self, views, root):
        set_used(views[1], OLD)
        assert pruned(root, max_entries=0).entries == 1
        keeping(root, 1).turn()
        assert views[0].exists()

    def test_one_that_has_lost_its_entry_is_pruned_too(self, views, root, elsewhere):
        self.outdate(views)
        shutil.rmtree(root / "gpucache/v1/store")
        assert pruned(root, max_entries=0).entries == 2
        assert not any(view.exists() for view in views)

    @pytest.mark.parametrize(
        "said", [{"root": "/another"}, {"root": None}, {"key": "C" * 52}, {"root": ["x"]}]
    )
    def test_one_that_names_another_root_or_key_is_none(self, views, root, said):
        self.outdate(views)
        manifest = views[0] / "__entry__.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **said}))
        os.utime(manifest, (OLD, OLD))
        assert pruned(root, max_entries=0).entries == 2
        assert [view.exists() for view in views] == [True, False]

    def test_one_that_was_moved_to_another_key_is_none(self, views, root, elsewhere):
        self.outdate(views)
        views[0].rename(elsewhere / ("E" * 52))
        pruned(root, max_entries=0)
        assert os.listdir(elsewhere) == ["E" * 52]

    def test_they_are_made_smaller_too(self, views, root):
        self.outdate(views)
        assert pruned(root, keep_binaries=True).slimmed == 2
        assert not any((view / "add.ptx").exists() for view in views)
        assert len(scan(str(root)).entries[0].copies) == 2


class TestRemembering:
    def test_once_a_process_and_directory_and_never_below_the_root(self, put, root, elsewhere):
        put(root / "triton/0")
        assert notes(root) == []
        put()
        (one,) = notes(root)
        assert paths(root) == [str(elsewhere)]
        one.unlink()
        remember(str(root), str(elsewhere))
        assert notes(root) == []

    def test_a_new_view_renews_the_note_and_a_hit_costs_nothing(
        self, put, root, elsewhere, monkeypatch
    ):
        put()
        (one,) = notes(root)
        os.utime(one, (OLD, OLD))
        put()
        assert one.stat().st_mtime == pytest.approx(OLD), "two hits"
        monkeypatch.setattr(foreign, "_remembered", set())
        shutil.rmtree(elsewhere)
        put()
        assert one.stat().st_mtime > OLD
        assert len(notes(root)) == 1

    def test_a_directory_that_is_fresh_on_purpose_is_not(self, put, root, tmp_path, monkeypatch):
        stock = tmp_path / "tmpabcd0123"
        monkeypatch.delitem(sys.modules, "triton.runtime.cache", raising=False)
        with pytest.raises(KeyError):  # stock Triton is to act, and is not imported
            put(stock)
        assert notes(root) == []

    def test_a_user_has_1000_and_the_oldest_go(self, root, provisioned, monkeypatch, tmp_path):
        monkeypatch.setattr(foreign, "_MOST", 5)
        gone = str(tmp_path / "gone")
        others = [note(root, gone, user=ADA) for _ in range(7)] if os.geteuid() == 0 else []
        for number in range(8):
            one = tmp_path / f"cache{number}"
            one.mkdir()
            remember(str(root), str(one))
            (latest,) = (path for path in notes(root) if f'"{one}"' in path.read_text())
            os.utime(latest, (OLD + number, OLD + number))
        assert [Path(path).name for path in paths(root)] == [f"cache{n}" for n in range(3, 8)]
        assert all(path.exists() for path in others), "one user does not displace another's"

    def test_many_processes_at_once_lose_none(self, root, provisioned, tmp_path):
        started = [
            SPAWN.Process(target=remember_some, args=(str(root), str(tmp_path), number))
            for number in range(4)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(PATIENCE_S)
            assert process.exitcode == 0
        assert len(paths(root)) == 20

    def test_a_torn_note_is_written_anew(self, root, provisioned, elsewhere, monkeypatch):
        elsewhere.mkdir(parents=True)
        remember(str(root), str(elsewhere))
        (one,) = notes(root)
        for text in (b"", b"{", b"{}", b"[" * 5000, b"\xff"):
            one.write_bytes(text)
            assert paths(root) == []
            monkeypatch.setattr(foreign, "_remembered", set())
            remember(str(root), str(elsewhere))
            assert paths(root) == [str(elsewhere)]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
    def test_where_no_note_can_be_written_the_kernel_is_there_all_the_same(
        self, put, root, monkeypatch, number
    ):
        def refuse(path: str, *_: object) -> None:
            raise ProvisionError(path, number)

        monkeypatch.setattr(foreign, "write_whole", refuse)
        assert all(view.exists() for view in put())
        assert notes(root) == []

    def test_many_paths_to_one_directory_are_one(self, put, root, elsewhere, tmp_path):
        put()
        assert paths(root) == [str(elsewhere)]
        for number in range(3):
            (tmp_path / f"link{number}").symlink_to(elsewhere.parent)
            note(root, f"{tmp_path}/link{number}/{elsewhere.name}")
        assert paths(root) == [str(elsewhere)]

    def test_a_list_behind_a_link_is_not_read(self, put, root, tmp_path):
        put()
        os.rename(root / "gpucache/v1/foreign", tmp_path / "foreign")
        (root / "gpucache/v1/foreign").symlink_to(tmp_path / "foreign")
        assert paths(root) == []
        forget_gone(str(root))
        assert len(notes(root)) == 1

    def test_what_is_gone_is_forgotten_by_the_next_prune_and_count(self, put, root, elsewhere):
        put()
        shutil.rmtree(elsewhere)
        assert paths(root) == []
        assert pruned(root).entries == 0
        assert notes(root) == []
        remembered = note(root, str(elsewhere))
        keeping(root, 10**9).turn()
        assert not remembered.exists()

    def test_what_another_node_remembers_is_forgotten_after_a_month(self, root):
        young = note(root, "/not/here", name=f"ffffffff.0.{'1' * 32}.json", user=0)
        old = note(root, "/not/here", name=f"ffffffff.0.{'2' * 32}.json", user=0)
        os.utime(old, (OLD - 31 * 86400,) * 2)
        forget_gone(str(root))
        assert (young.exists(), old.exists()) == (True, False)


def remember_some(root: str, base: str, number: int) -> None:
    """Ten directories, half of which the next process remembers too."""
    for each in range(number * 5, number * 5 + 10):
        directory = f"{base}/cache{each % 20}"
        os.makedirs(directory, exist_ok=True)
        remember(root, directory)


class TestNoOrderToDelete:
    def test_nothing_goes_but_views_of_the_entry(self, put, root, elsewhere, tmp_path):
        """Beside one: what has another manifest, or none, or is another key's, and what is no key's at all."""
        first, _ = put()
        mine = tmp_path / "mine"
        planted = {
            "same content": mine / KEYS[0],
            "another key's": mine / ("E" * 52),
            "no key's": mine / "notes",
            "no manifest": mine / KEYS[1],
        }
        shutil.copytree(first, planted["same content"])
        shutil.copytree(first, planted["another key's"], copy_function=os.link)
        shutil.copytree(first, planted["no key's"], copy_function=os.link)
        planted["no manifest"].mkdir()
        (planted["no manifest"] / "thesis").write_text("mine")
        note(root, str(mine))
        before = everything_below(mine)
        assert pruned(root, max_entries=0).entries == 2
        assert everything_below(mine).keys() == before.keys()
        assert not first.exists()

    def test_a_plan_is_vetted_again_when_it_is_carried_out(self, put, root, elsewhere):
        """The view becomes something else of the same name between the two."""
        first, _ = put()
        made = planned(root, max_entries=0)
        shutil.rmtree(first)
        first.mkdir()
        (first / "thesis").write_text("mine")
        assert made.execute().entries == 2
        assert (first / "thesis").read_text() == "mine"

    def test_the_eviction_looks_too(self, put, root, elsewhere, tmp_path):
        put()
        mine = tmp_path / "mine"
        shutil.copytree(elsewhere, mine)
        note(root, str(mine))
        updated(str(root), counted(str(root)), anew=True)
        keeping(root, 1).turn()
        assert not (elsewhere / KEYS[0]).exists()
        assert sorted(os.listdir(mine)) == KEYS

    def test_the_store_is_no_place_of_views_whatever_a_note_says(self, put, root):
        put(root / "triton/0")
        for shard in (root / "gpucache/v1/store").iterdir():
            note(root, os.path.realpath(shard))
        assert paths(root) == []
        for entry in scan(str(root)).entries:
            assert entry.directories == ("0",)

    def test_what_belongs_to_another_user_than_the_note_stays(self, put, root, elsewhere, as_root):
        first, _ = put()
        os.chown(first, ADA, -1)
        assert pruned(root, max_entries=0).entries == 2
        assert first.exists()

    def test_a_note_of_another_user_than_it_says_is_none(self, root, tmp_path, as_root):
        note(root, str(tmp_path), name=f"{node_id()}.0.{'1' * 32}.json", user=ADA)
        assert paths(root) == []

    @pytest.mark.parametrize(
        "path",
        [
            "",
            ".",
            "relative",
            "/a/../b",
            "//",
            "/a/",
            "/a\0b",
            "/dev/null",
            "/nowhere",
            7,
            None,
            ["/"],
            "/\udcff\ud800",
        ],
        ids=repr,
    )
    def test_paths_that_are_none_are_passed_over(self, root, path):
        note(root, path)
        assert paths(root) == []
        scan(str(root))

    def test_a_path_in_the_root_or_through_a_link_leads_nowhere(self, put, root, tmp_path):
        put()
        note(root, f"{root}/triton")
        link = tmp_path / "link"
        link.symlink_to(tmp_path)
        note(root, f"{link}")
        assert len(paths(root)) == 1

    def test_behind_a_link_nothing_goes(self, put, root, elsewhere, tmp_path):
        first, _ = put()
        (tmp_path / "link").symlink_to(elsewhere.parent)
        for one in notes(root):
            one.unlink()
        note(root, f"{tmp_path}/link/triton_cache")
        pruned(root, max_entries=0)
        assert first.exists()

    @pytest.mark.parametrize("kind", ["fifo", "device", "huge"])
    def test_what_is_no_note_hangs_nobody(self, root, kind, as_root):
        place = root / "gpucache/v1/foreign"
        place.mkdir(parents=True)
        planted = place / f"{node_id()}.0.{'1' * 32}.json"
        if kind == "fifo":
            os.mkfifo(planted)
        elif kind == "device":
            planted.symlink_to("/dev/zero")
        else:
            with planted.open("wb") as file:
                file.truncate(1 << 40)
        assert paths(root) == []
        forget_gone(str(root))

    def test_a_fifo_in_a_foreign_directory_hangs_nobody(self, put, root, elsewhere):
        first, second = put()
        shutil.rmtree(first)
        os.mkfifo(first)
        (second / "__entry__.json").unlink()
        os.mkfifo(second / "__entry__.json")
        done = threading.Event()
        thread = threading.Thread(
            target=lambda: (pruned(root, max_entries=0), done.set()), daemon=True
        )
        thread.start()
        assert done.wait(PATIENCE_S)

    def test_views_that_this_user_may_not_remove_keep_no_entry(
        self, put, root, elsewhere, monkeypatch
    ):
        first, _ = put()
        monkeypatch.setattr("gpucache.upkeep.execution.is_removable", lambda _: False)
        assert pruned(root, max_entries=0).entries == 2
        assert first.exists()
        assert not Path(entry_path(str(root), KEYS[0])).exists()


@pytest.mark.parametrize("letter", ["a", "\udcff", "\u5317", "\x1b"])
def test_a_path_of_any_length_and_letters_is_found_again(letter, tmp_path, root):
    length = 3500 // len(os.fsencode(letter))
    name = letter * (250 // len(os.fsencode(letter)))
    directory = str(tmp_path)
    while len(directory) < length:
        directory = f"{directory}/{name}"
    os.makedirs(directory)
    (root / "gpucache" / "v1" / "tmp").mkdir(parents=True)
    remember(str(root), directory)
    assert [found.path for found in foreign_directories(str(root))] == [directory]
