"""The limit keeps itself: counted right, drained by turns, silent on every disk, and nothing but our own goes."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.launches import finish_turns
from support.processes import PATIENCE_S
from support.trees import KERNEL, OLD, Tree, aged, set_used, whole_or_no_hit
from support.writers import put_kernel

from gpucache import log
from gpucache.disk.fitness import Fitness, fitness
from gpucache.disk.lock_place import LockPlace
from gpucache.forks import closed_in_child
from gpucache.layout.keys import ASIDE, view_key
from gpucache.report.cache_report import scan
from gpucache.store import eviction, foreign, limit, size
from gpucache.store.counting import counted
from gpucache.store.key_lock import KeyLock
from gpucache.store.limit import Limit, max_size_bytes
from gpucache.store.lookup import sound
from gpucache.store.manifest import (
    CONDEMNED,
    MANIFEST,
    Facts,
    entry_path,
    read_manifest,
    single_key,
)
from gpucache.store.publish import link_view, publish_entry
from gpucache.store.quarantine import quarantine
from gpucache.store.size import Total, count_anew_later, updated
from gpucache.store.stats import Stats, totals
from gpucache.triton import location
from gpucache.triton.manager import DeviceCacheManager
from gpucache.triton.staged import executable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"
GROUP_BYTES = 1024


def said(root: Path | str) -> Total:
    """What the file says, once nobody writes it: a thread that counts or a child before its exec may hold it."""
    while True:
        found = updated(str(root), 0)
        if found is not None:
            return found
        with open(f"{root}/gpucache/v1/stats/size") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # sleeps until the writer is done


def total(root: Path | str) -> int:
    """The bytes that the file says."""
    return said(root).size_bytes


def draining(root: Path | str) -> bool:
    return said(root).draining


def keeping(root: Path, size: int, grace_s: float = 600.0) -> Limit:
    return Limit(str(root), LockPlace(str(root)), size, grace_s)


def stored(root: Path) -> set[str]:
    return {path.name for path in (root / "gpucache/v1/store").glob("*/*")}


def over(kept: Limit, trees: list[Tree]) -> None:
    """Put what is there once more into the file's hands: it is counted, and a turn is due."""
    manifest, _ = read_manifest(str(trees[-1].entry))
    kept.published(manifest)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cut a turn short; the tests about that set the length themselves."""
    monkeypatch.setattr(limit, "_TURN_S", 60.0)


@pytest.fixture
def trees(tmp_path: Path) -> list[Tree]:
    """Ten entries with two views each, the first the one that was used least recently."""
    made = [Tree(tmp_path, letter * 52) for letter in LETTERS[:10]]
    for number, one in enumerate(made):
        set_used(one.entry, OLD + number)
    return made


def test_what_goes_for_the_limit_is_counted_where_the_turn_was(trees, root, caplog):
    caplog.set_level(logging.INFO, "gpucache")
    stats = Stats(str(root / "gpucache/v1/stats"), "3")
    before = counted(str(root))
    kept = Limit(str(root), LockPlace(str(root)), before // 2, stats=stats)
    over(kept, trees)
    entries = len(stored(root))
    kept.turn()
    gone = entries - len(stored(root))
    assert gone > 0
    values = {"evicted": gone, "evicted_bytes": before - counted(str(root))}
    assert totals(str(root)) == {"3": values}
    told = [getattr(record, log.FIELDS, {}) for record in caplog.records]
    keys = {fields["key"] for fields in told if "key" in fields}
    assert keys == {one.entry.name for one in trees if not one.entry.exists()}


class TestCounting:
    def test_the_count_is_of_entries_and_their_views(self, trees, root):
        files = sum(
            usage.physical_bytes for usage in scan(str(root)).usage if usage.name == "store"
        )
        assert counted(str(root)) == files + 20 * GROUP_BYTES

    def test_links_elsewhere_and_links_in_the_store_count_nothing(self, trees, root, tmp_path):
        before = counted(str(root))
        for number in range(9):
            shutil.copytree(
                root / "gpucache/v1/store", tmp_path / f"held{number}", copy_function=os.link
            )
        (trees[0].entry.parent / ("Z" * 52)).symlink_to(trees[0].entry)
        assert counted(str(root)) == before, "no more views than there are device directories"

    def test_what_is_put_is_added_as_it_would_be_counted(self, tmp_path, root):
        Tree(tmp_path, "A" * 52)
        kept = keeping(root, 10**9)
        other = Tree(tmp_path, "B" * 52)
        shutil.rmtree(other.other_view)
        over(kept, [other])
        kept.turn()
        before = total(root)
        assert before == counted(str(root))
        third = Tree(tmp_path, "C" * 52)
        over(kept, [third])
        kept.viewed()
        assert total(root) == counted(str(root)) > before

    def test_four_processes_lose_no_more_than_each_its_last(self, root, tmp_path):
        context = multiprocessing.get_context("spawn")
        writers = [
            context.Process(target=write_kernels, args=(str(root), number, 25))
            for number in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(PATIENCE_S)
            assert writer.exitcode == 0
        assert len(stored(root)) == 100
        one = counted(str(root)) // 100
        # The first count, and what each could not write at its end.
        assert abs(total(root) - counted(str(root))) <= 8 * one

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{}",
            b"[",
            b"[1e999,false,1]",
            b"[1,false]",
            b"\xff",
            b"[NaN,0,0]",
            b'["a",0,0]',
            b"[7,0,1e999]",
        ],
    )
    def test_a_file_that_makes_no_sense_is_counted_anew(self, trees, root, text):
        kept = keeping(root, 10**9)
        kept.viewed()
        (root / "gpucache/v1/stats/size").write_bytes(text)
        kept.viewed()
        kept.turn()
        assert total(root) == counted(str(root))

    @pytest.mark.parametrize("size", [b"1e30", b"-5", b"9" * 60])
    def test_a_size_that_no_store_has_evicts_nothing_and_is_counted_anew(self, trees, root, size):
        """Taken at its word, it would let every entry go."""
        kept = keeping(root, 10**9)
        kept.viewed()
        now = b"%d" % time.time()
        (root / "gpucache/v1/stats/size").write_bytes(b"[%b,true,%b]" % (size, now))
        kept.viewed()
        kept.turn()
        assert len(stored(root)) == len(trees)
        assert total(root) == counted(str(root))

    def test_it_is_counted_anew_after_a_day_and_after_a_prune(self, trees, root):
        kept = keeping(root, 10**9)
        updated(str(root), 7, anew=True, now=time.time() - 86500)
        kept.turn()
        assert total(root) == counted(str(root))
        updated(str(root), 7, anew=True)
        kept.turn()
        assert total(root) == 7
        count_anew_later(str(root))
        kept.turn()
        assert total(root) == counted(str(root))

    def test_a_link_in_place_of_the_file_is_not_followed(self, trees, root, tmp_path):
        (tmp_path / "outside").write_text("mine")
        (root / "gpucache/v1/stats").mkdir()
        (root / "gpucache/v1/stats/size").symlink_to(tmp_path / "outside")
        over(keeping(root, 1), trees)
        count_anew_later(str(root))
        assert (tmp_path / "outside").read_text() == "mine"

    def test_while_another_writes_the_file_nothing_is_lost(self, trees, root):
        kept = keeping(root, 10**9)
        updated(str(root), 0, anew=True)
        with (root / "gpucache/v1/stats/size").open("rb+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            kept.viewed()
            kept.viewed()
        assert total(root) == 0
        kept.viewed()
        assert total(root) == 3 * GROUP_BYTES


def write_kernels(root: str, number: int, count: int) -> None:
    """Put kernels as Triton does, each with a manager of its own."""
    os.environ |= {
        "GPUCACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/{number}",
        "GPUCACHE_SHARE": "1",
    }
    for each in range(count):
        put_kernel(f"{LETTERS[number]}{LETTERS[each % 24]}{LETTERS[each // 24]}" + "A" * 49)
    finish_turns()


class TestCountInParts:
    """A count rests between the parts of the store, and others put and remove meanwhile."""

    def test_what_is_put_and_removed_meanwhile_is_right_in_the_sum(self, tmp_path, trees, root):
        """In a part that was counted before."""
        changes = [
            lambda: Tree(tmp_path, "A" * 51 + "B"),
            lambda: shutil.rmtree(trees[1].entry),
        ]

        def change() -> None:
            if changes:
                changes.pop(0)()

        during = counted(str(root), change)
        assert not changes
        assert during == counted(str(root))

    def test_a_count_ends_although_others_change_the_store_all_the_time(self, root, trees):
        busy = trees[0].entry.parent
        calls = []

        def change() -> None:
            calls.append(len(calls))
            (busy / str(len(calls))).mkdir()

        counted(str(root), change)
        assert len(calls) < 40

    def test_it_rests_in_a_thread_and_not_on_the_main_thread(self, monkeypatch):
        monkeypatch.setattr(limit, "_WORK_S", 0.0)
        monkeypatch.setattr(limit, "_REST_S", 0.05)

        def spent(rest: Callable[[], None]) -> float:
            began = time.monotonic()
            rest()
            return time.monotonic() - began

        assert spent(limit._resting()) < 0.05
        in_thread: list[float] = []
        thread = threading.Thread(target=lambda: in_thread.append(spent(limit._resting())))
        thread.start()
        thread.join(PATIENCE_S)
        assert in_thread[0] >= 0.05

    def test_at_the_end_of_the_process_it_rests_no_more(self, python):
        code = (
            "import threading, time\n"
            "from gpucache.store import limit\n"
            "limit._WORK_S, limit._REST_S = 0.0, 3600.0\n"
            "def count():\n"
            "    rest = limit._resting()\n"
            "    for _ in range(3):\n"
            "        time.sleep(0.01)\n"
            "        rest()\n"
            "    print('counted')\n"
            "threading.Thread(target=count).start()\n"
        )
        done = python(code, Path(__file__).parent)
        assert (done.returncode, done.stdout, done.stderr) == (0, "counted\n", "")


class TestEvicting:
    def test_the_least_recently_used_go_with_their_views_down_to_nine_tenths(self, trees, root):
        size = counted(str(root))
        kept = keeping(root, size - 1)
        over(kept, trees)
        kept.turn()
        assert [one.entry.exists() for one in trees] == [False] * 2 + [True] * 8
        assert [one.view.exists() for one in trees] == [False] * 2 + [True] * 8
        assert total(root) == counted(str(root)) <= (size - 1) * 0.9
        assert not draining(root)

    def test_below_the_limit_nothing_goes(self, trees, root):
        kept = keeping(root, counted(str(root)))
        over(kept, trees)
        kept.turn()
        assert len(stored(root)) == 10

    def test_it_goes_on_over_several_turns(self, trees, root, monkeypatch):
        """Each is as short as can be, and takes one; every put calls for the next until the aim is reached."""
        kept = keeping(root, counted(str(root)) // 2)
        monkeypatch.setattr(limit, "_TURN_S", 0.0)
        over(kept, trees)
        turns, left = 0, [10]
        while turns == 0 or draining(root):
            kept.viewed()
            assert kept._due
            kept.turn()
            turns += 1
            left.append(len(stored(root)))
        assert left == [10, 9, 8, 7, 6, 5, 4, 3]
        assert total(root) <= kept.limit_bytes * 0.9
        kept._due = False
        kept.viewed()
        assert not kept._due

    def test_what_was_used_between_two_turns_is_the_last_to_go(self, trees, root, monkeypatch):
        kept = keeping(root, counted(str(root)) // 2)
        with monkeypatch.context() as patch:
            patch.setattr(limit, "_TURN_S", 0.0)
            over(kept, trees)
            kept.turn()
        set_used(trees[1].entry, time.time() - 700)
        kept.turn()
        assert len(stored(root)) == 4
        assert trees[1].entry.exists()

    def test_of_four_processes_over_the_limit_all_end_below_it(self, root, monkeypatch):
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "100KB")
        monkeypatch.setenv("GPUCACHE_STAMP_S", "0")
        context = multiprocessing.get_context("spawn")
        writers = [
            context.Process(target=write_kernels, args=(str(root), number, 25))
            for number in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(PATIENCE_S)
            assert writer.exitcode == 0
        for path in (root / "gpucache/v1/store").glob("*/*"):
            set_used(path, OLD)
        count_anew_later(str(root))
        kept = keeping(root, 100_000)
        kept.viewed()
        for _ in range(10):
            kept.turn()
        assert counted(str(root)) <= 90_000
        assert total(root) == counted(str(root))

    def test_while_another_process_has_the_turn_nothing_goes(self, trees, root):
        kept = keeping(root, 1)
        over(kept, trees)
        fd = os.open(kept.locks.inside, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        kept.turn()
        assert len(stored(root)) == 10
        os.close(fd)
        kept.turn()
        assert stored(root) == set()

    def test_what_was_used_in_the_grace_stays_and_is_not_tried_all_the_time(self, trees, root):
        for one in trees[1:]:
            set_used(one.entry, time.time() - 300)
        kept = keeping(root, 1)
        over(kept, trees)
        kept.turn()
        assert len(stored(root)) == 9
        over(kept, trees)
        kept.enforce()
        assert kept._thread is None, "it would find nothing"

    def test_a_view_that_was_used_keeps_its_entry(self, trees, root):
        """On another file system it has a manifest of its own."""
        copied = trees[0].view / MANIFEST
        text = copied.read_bytes()
        copied.unlink()
        copied.write_bytes(text)
        kept = keeping(root, 1)
        over(kept, trees)
        kept.turn()
        assert stored(root) == {trees[0].key}
        assert trees[0].view.exists()

    @pytest.mark.parametrize("locked", [0, 3])
    def test_what_is_locked_stays_and_the_others_go(self, trees, root, locked):
        lock = KeyLock(f"{root}/gpucache/v1/locks/{trees[locked].key}.lock")
        assert lock.try_acquire(sys._getframe(), "add")
        kept = keeping(root, 1)
        over(kept, trees)
        kept.turn()
        lock.release()
        assert stored(root) == {trees[locked].key}
        assert trees[locked].whole(trees[locked].view)

    def test_links_elsewhere_do_not_make_it_evict_everything(self, trees, root, tmp_path):
        shutil.copytree(root / "gpucache/v1/store", tmp_path / "held", copy_function=os.link)
        kept = keeping(root, counted(str(root)) * 7 // 10)
        over(kept, trees)
        kept.turn()
        assert len(stored(root)) == 6

    def test_what_is_not_stored_is_never_touched(self, trees, root):
        """Stock Triton's, torch's, and views that have lost their entry."""
        stock = root / "triton/0" / ("S" * 52)
        stock.mkdir()
        for name, data in KERNEL.items():
            (stock / name).write_bytes(data)
            os.utime(stock / name, (OLD, OLD))
        (root / "fxgraph").mkdir()
        (root / "fxgraph/graph").write_bytes(bytes(10_000))
        shutil.rmtree(trees[0].entry)
        before = sorted(os.listdir(stock))
        kept = keeping(root, 1)
        over(kept, trees)
        kept.turn()
        assert stored(root) == set()
        assert sorted(os.listdir(stock)) == before
        assert (root / "fxgraph/graph").exists()
        assert trees[0].whole(trees[0].view)
        assert trees[0].whole(trees[0].other_view)

    def test_a_file_that_stands_for_itself_takes_its_own_view_only(self, trees, root):
        one, key = trees[0], "Y" * 52
        for name in ("a.so", "b.so"):
            alone = single_key(key, name, "")
            assert publish_entry(
                str(root),
                alone,
                one.staged({name: b"\x7f" + name.encode()}),
                Facts(name, None),
                one.staging,
                False,
            )
            entry = Path(entry_path(str(root), alone))
            manifest = sound(str(entry), False, 0.0)
            link_view(
                str(root), str(entry), str(root / "triton/0" / view_key(alone)), manifest, False
            )
            set_used(entry, OLD - 100 if name == "b.so" else time.time())
        kept = keeping(root, counted(str(root)) - 1)
        over(kept, trees)
        kept.turn()
        assert single_key(key, "b.so", "") not in stored(root)
        assert (root / "triton/0" / key / "a.so").exists()

    @pytest.mark.parametrize("planted", ["entry", "view"])
    def test_links_are_not_followed(self, trees, root, tmp_path, planted):
        path = getattr(trees[0], planted)
        path.rename(tmp_path / "outside")
        path.symlink_to(tmp_path / "outside")
        before = sorted(os.listdir(tmp_path / "outside"))
        kept = keeping(root, 1)
        over(kept, trees)
        kept.turn()
        assert sorted(os.listdir(tmp_path / "outside")) == before
        assert len(stored(root)) == 1


class TestProcesses:
    """When a turn begins, and that it ends."""

    @pytest.fixture
    def manager(
        self, trees: list[Tree], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str], object]:
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
        monkeypatch.setenv("GPUCACHE_SHARE", "1")
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", str(counted(str(root))))
        monkeypatch.setattr("gpucache.triton.manager._locations", {})
        return DeviceCacheManager

    def test_it_begins_when_the_manager_object_is_gone(self, manager, trees, root):
        one = manager("N" * 52)
        assert one.get_group("add.json") is None
        group = {name: one.put(data, name) for name, data in KERNEL.items()}
        one.put_group("add.json", group)
        kept = one._location.limit
        assert kept._due
        assert kept._thread is None
        assert len(stored(root)) == 11
        del one
        gc.collect()
        kept._thread.join(PATIENCE_S)
        assert not kept._thread.is_alive()
        assert not trees[0].entry.exists()
        assert counted(str(root)) <= kept.limit_bytes * 0.9
        assert all(map(os.path.exists, group.values()))

    def test_a_process_that_ends_at_once_ends_its_turn_first(self, trees, root, python):
        code = """if True:
            import sys
            sys.path.insert(0, sys.argv[1])
            from support.writers import put_kernel_in_a_long_turn
            put_kernel_in_a_long_turn("N" * 52)
        """
        env = {
            **os.environ,
            "GPUCACHE_DIR": str(root),
            "TRITON_CACHE_DIR": f"{root}/triton/0",
            "GPUCACHE_SHARE": "1",
            "GPUCACHE_MAX_SIZE": str(counted(str(root)) // 2),
        }
        done = python(code, Path(__file__).parent, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert counted(str(root)) <= int(env["GPUCACHE_MAX_SIZE"]) * 0.9

    def test_a_manager_that_goes_while_another_thread_of_ours_counts_hangs_nobody(
        self, trees, root, monkeypatch
    ):
        """The collector may call us in the middle of ourselves."""
        kept = keeping(root, 10**9)
        updated = size.updated
        monkeypatch.setattr(
            size, "updated", lambda *words, **more: (kept.enforce(), updated(*words, **more))[1]
        )
        thread = threading.Thread(target=kept.viewed, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()

    def test_a_child_of_a_fork_neither_holds_the_turn_nor_waits_for_its_parent(self, trees, root):
        kept = keeping(root, 1)
        over(kept, trees)
        inside, go = threading.Event(), threading.Event()

        def evicting() -> None:
            with kept._mutex:  # at the worst moment
                fd = os.open(kept.locks.inside, os.O_RDONLY)
                fcntl.flock(fd, fcntl.LOCK_EX)
                closed_in_child.add(fd)
                inside.set()
                go.wait(PATIENCE_S)
                closed_in_child.discard(fd)
                os.close(fd)

        thread = threading.Thread(target=evicting)
        thread.start()
        assert inside.wait(PATIENCE_S)
        told, tell = os.pipe()
        waited, wait = os.pipe()
        child = os.fork()
        if child == 0:
            kept.viewed()
            os.write(tell, b"counted")
            os.close(wait)
            os.read(waited, 1)  # alive until the parent has had its turn
            os._exit(0)
        assert os.read(told, 7) == b"counted"
        go.set()
        thread.join(PATIENCE_S)
        kept.turn()
        assert stored(root) == set()
        for fd in (told, tell, waited, wait):
            os.close(fd)
        assert os.waitpid(child, 0)[1] == 0

    def test_a_main_thread_that_cannot_be_waited_for_is_no_trouble(self, trees, root, monkeypatch):
        """After a fork in a thread of C code, Python 3.10 and 3.11 have a stand-in for it."""

        class StandIn:
            def join(self, _: float) -> None:
                raise AssertionError("cannot join a dummy thread")

        monkeypatch.setattr(threading, "main_thread", StandIn)
        monkeypatch.setattr(limit, "_WORK_S", 0.0)
        kept = keeping(root, 10**9)
        count_anew_later(str(root))
        kept.viewed()
        kept.turn()
        assert total(root) == counted(str(root))

    def test_where_no_thread_can_be_started_there_is_no_turn(self, trees, root, monkeypatch):
        kept = keeping(root, 1)
        over(kept, trees)

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        kept.enforce()
        assert len(stored(root)) == 10


class TestSetting:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("0", 0),
            ("20GiB", 20 * 2**30),
            ("500MB", 500_000_000),
            ("4096", 4096),
            ("1.5G", 3 * 2**29),
        ],
    )
    def test_the_variable_is_a_size(self, tmp_path, text, size):
        assert max_size_bytes(str(tmp_path), {"GPUCACHE_MAX_SIZE": text}) == size

    def test_without_one_it_is_a_tenth_of_the_file_system_and_no_more_than_50_gib(
        self, tmp_path, monkeypatch
    ):
        disk = os.statvfs(tmp_path)
        expected = min(disk.f_blocks * disk.f_frsize // 10, 50 * 2**30)
        assert max_size_bytes(str(tmp_path), {}) == pytest.approx(expected, abs=1)
        assert max_size_bytes(str(tmp_path), {"GPUCACHE_MAX_SIZE": ""}) == pytest.approx(
            expected, abs=1
        )

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, None])
    def test_on_a_mount_that_tells_of_no_size_it_is_the_most(self, number, tmp_path, monkeypatch):
        """As an object store's; no size at all would be no limit."""
        answer = os.statvfs_result([0] * 10)

        def statvfs(path: str) -> os.statvfs_result:
            if number is not None:
                raise OSError(number, os.strerror(number), path)
            return answer

        monkeypatch.setattr(os, "statvfs", statvfs)
        assert max_size_bytes(str(tmp_path), {}) == 50 * 2**30
        assert fitness(str(tmp_path)) == Fitness()
        assert executable(str(tmp_path))

    @pytest.mark.root
    def test_on_a_small_file_system_it_is_small(self, tmp_path, mount):
        point = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "none")
        assert max_size_bytes(str(point), {}) == 2**20 // 10

    @pytest.mark.parametrize("text", ["-1", "plenty", "10%", "1e9", "GiB"])
    def test_what_is_no_size_is_warned_of_once_and_means_the_default(
        self, trees, root, monkeypatch, caplog, text
    ):
        monkeypatch.setattr(log, "_warned", set())
        environ = {"GPUCACHE_DIR": str(root), "GPUCACHE_SHARE": "1", "GPUCACHE_MAX_SIZE": text}
        with caplog.at_level(logging.WARNING, "gpucache"):
            settled = [location.locate(str(root / "triton/0"), environ) for _ in range(3)]
        default = max_size_bytes(str(root), {})
        assert [one.limit.limit_bytes for one in settled] == [default] * 3
        assert ["GPUCACHE_MAX_SIZE" in record.message for record in caplog.records] == [True]

    def test_zero_is_no_limit_and_costs_nothing(self, trees, root):
        kept = keeping(root, 0)
        over(kept, trees)
        kept.enforce()
        assert kept._thread is None
        assert not (root / "gpucache/v1/stats").exists()

    def test_the_grace_is_never_so_short_that_triton_could_not_open_the_files(self, root):
        assert keeping(root, 1, grace_s=0.0).grace_s >= 2.0

    @pytest.mark.parametrize("mode", ["stock", "private"])
    def test_where_nothing_is_shared_there_is_no_limit(self, root, tmp_path, mode):
        environ = {
            "GPUCACHE_DIR": "/proc/nowhere" if mode == "private" else str(root),
            "GPUCACHE_MAX_SIZE": "1",
        }
        if mode == "stock":
            environ["GPUCACHE_SHARE"] = "0"
        settled = location.locate(str(tmp_path / "absent"), environ)
        assert settled.limit.limit_bytes == 0


class TestDisk:
    """Whatever it says, a kernel is put."""

    @pytest.fixture(autouse=True)
    def put_env(self, root, monkeypatch):
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
        monkeypatch.setenv("GPUCACHE_SHARE", "1")
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "1")
        monkeypatch.setattr("gpucache.triton.manager._locations", {})
        monkeypatch.setattr("gpucache.triton.shared_kernel._full", set())

    @pytest.mark.parametrize(
        "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOLCK, errno.ESTALE, errno.EIO]
    )
    def test_a_file_that_cannot_be_written_costs_the_limit_only(self, root, monkeypatch, number):
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(size, "updated", refuse)
        group = put_kernel("N" * 52)
        assert stored(root) == {"N" * 52}
        gc.collect()
        assert all(path.startswith(str(root / "triton/0")) for path in group.values()), (
            "and it is published"
        )

    @pytest.mark.root
    def test_on_a_full_disk(self, root, mount):
        mount(root, "-t", "tmpfs", "-o", "size=1m,mode=0700", "none")
        put_kernel("N" * 52)
        ballast(root)
        put_kernel("M" * 52)

    @pytest.mark.root
    def test_on_a_read_only_disk(self, root, mount, python):
        mount(root, "-t", "tmpfs", "-o", "size=1m,mode=0700", "none")
        code = "import sys; sys.path.insert(0, sys.argv[1]); "
        code += "from support.writers import put_kernel; put_kernel('N' * 52)"
        assert (
            python(
                code, Path(__file__).parent, env={**os.environ, "GPUCACHE_MAX_SIZE": "0"}
            ).returncode
            == 0
        )
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        put_kernel("M" * 52)
        manager = DeviceCacheManager("N" * 52)
        assert manager.get_group("add.json")
        manager._location.limit.turn()

    def test_on_a_root_that_vanished(self, root):
        put_kernel("N" * 52)
        finish_turns()  # one that counts would make its file again while the root goes
        shutil.rmtree(root)
        put_kernel("M" * 52)
        finish_turns()
        kept = DeviceCacheManager("M" * 52)._location.limit
        shutil.rmtree(root)
        kept.turn()
        kept.viewed()


def ballast(directory: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (directory / "ballast").write_bytes(bytes(2 << 20))


def test_what_killed_evictions_left_neither_counts_nor_displaces_anything(trees, root):
    whole = counted(str(root))
    for tree in trees[:2]:
        aside = tree.entry.with_name(f"{ASIDE}removed-1.2.{tree.key[0]}")
        shutil.copytree(tree.entry, aside)
        os.utime(aside, (1e9, 1e9))
    assert counted(str(root)) == whole
    assert not list(root.glob(f"gpucache/v1/store/*/{ASIDE}*"))


def test_after_a_refusal_what_is_over_the_limit_goes(trees, root):
    """On a full disk nothing is published, so that nobody else would ask for an eviction."""
    kept = keeping(root, 1)
    kept.refused()
    assert kept._due
    kept.turn()
    assert len(stored(root)) == 0


def test_an_entry_of_a_wrong_clock_goes_before_what_is_used(trees, root):
    """It would look used for a month, and every new kernel would be evicted in its place."""
    ahead = trees[0]
    set_used(ahead.entry, time.time() + 30 * 86400)
    for tree in trees[1:]:
        set_used(tree.entry, time.time() - 60)
    kept = keeping(root, counted(str(root)) - 1)
    over(kept, trees)
    kept.turn()
    assert stored(root) == {tree.key for tree in trees[1:]}


class TestQuarantine:
    """What is damaged counts, wherever it came from, and goes before any entry."""

    def damage(self, root: Path, path: Path) -> None:
        assert quarantine(str(root), str(path))

    def test_it_is_counted_and_what_moves_there_changes_the_sum_as_a_count_does(self, trees, root):
        before = counted(str(root))
        kept = keeping(root, 10**9)
        kept.viewed()
        kept.turn()
        assert total(root) == before
        self.damage(root, trees[0].entry)
        self.damage(root, trees[1].view)
        assert total(root) > before
        assert abs(total(root) - counted(str(root))) <= 2 * GROUP_BYTES, "but for the views"

    def test_on_another_file_system_what_is_damaged_is_gone_from_the_sum(self, root, mount):
        mount(root / "gpucache/v1/quarantine", "-t", "tmpfs", "tmpfs")
        tree = Tree(root.parent, "A" * 52)
        updated(str(root), counted(str(root)), anew=True)
        quarantine(str(root), str(tree.entry))
        assert total(root) == 2 * GROUP_BYTES
        assert counted(str(root)) == 0

    def test_it_goes_first_the_oldest_before_the_others(self, trees, root, monkeypatch):
        for letter in "XYZ":
            damaged = Tree(root.parent, letter * 52)
            self.damage(root, damaged.entry)
        size = counted(str(root))
        kept = keeping(root, size - 1)
        monkeypatch.setattr(limit, "_LOW", 1 - 100 / size)
        updated(str(root), size, anew=True)
        kept.turn()
        assert len(stored(root)) == 10
        left = sorted(path.name[0] for path in (root / "gpucache/v1/quarantine").iterdir())
        assert left == ["Y", "Z"]
        assert total(root) == counted(str(root))

    def test_however_much_was_damaged_no_entry_pays_for_it(self, trees, root):
        limit_bytes = counted(str(root)) + 1
        for _ in range(30):
            damaged = Tree(root.parent, "Z" * 52)
            self.damage(root, damaged.entry)
            shutil.rmtree(damaged.view)
            shutil.rmtree(damaged.other_view)
        kept = keeping(root, limit_bytes)
        kept.viewed()
        kept.turn()
        taken = sum(
            path.stat().st_size for path in root.glob("gpucache/v1/[qs]*/**/*") if path.is_file()
        )
        assert taken <= limit_bytes
        assert len(stored(root)) == 10

    @pytest.mark.parametrize(
        "name", ["x", "x.zz.1", "x.ffff.1.1", f"x.{'f' * 240}.1", "\udcff.1.1"]
    )
    def test_whatever_its_names_are(self, trees, root, name):
        directory = root / "gpucache/v1/quarantine"
        directory.mkdir()
        (directory / name).mkdir()
        (directory / name / "file").write_bytes(b"12345")
        kept = keeping(root, 1)
        kept.viewed()
        kept.turn()
        assert not list(directory.iterdir())

    def test_links_planted_there_go_and_what_they_lead_to_stays(self, trees, root, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "mine").write_text("mine")
        directory = root / "gpucache/v1/quarantine"
        directory.mkdir()
        (directory / "x.1.1").symlink_to(outside)
        kept = keeping(root, 1)
        kept.viewed()
        kept.turn()
        assert not list(directory.iterdir())
        assert (outside / "mine").read_text() == "mine"
        directory.rmdir()
        directory.symlink_to(outside)
        kept.turn()
        assert (outside / "mine").read_text() == "mine"


# ---- every system call

TURN = (
    SCRIPT
    + """
from gpucache.disk.lock_place import LockPlace
from gpucache.forks import closed_in_child
from gpucache.store import limit
limit._TURN_S = 60.0
root = sys.argv[1] + "/root"
kept = limit.Limit(root, LockPlace(root), int(sys.argv[2]), 600.0)
mark("begin")
kept.turn()
mark("end")
"""
)


def test_a_turn_that_is_killed_at_any_system_call_leaves_whole_entries_to_the_next_turn(
    every_call, stock
):
    """What the file says is never less than what is there, so that the next turn brings the store under its limit."""

    def start(home: Path) -> list[object]:
        made = [Tree(home, letter * 52) for letter in LETTERS[:3]]
        for number, one in enumerate(made):
            set_used(one.entry, OLD + number)
        return [counted(str(home / "root")) // 2]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        for letter in LETTERS[:3]:
            for directory in (
                entry_path(str(root), letter * 52),
                *root.glob(f"triton/*/{letter * 52}"),
            ):
                whole_or_no_hit(Path(directory), stock, dict(KERNEL), line)
        for entry in root.glob("gpucache/v1/store/*/*"):
            if (entry / MANIFEST).exists():
                set_used(entry, OLD)  # those looks were uses
        now = said(root)
        assert now.stale or now.size_bytes >= counted(str(root)), line
        most = 3 * counted_of_one // 2
        kept = keeping(root, most)
        kept.refused()
        kept.turn()
        assert counted(str(root)) <= most, line
        count_anew_later(str(root))
        kept.turn()
        assert total(root) == counted(str(root)), line

    Tree(every_call._base / "one", "A" * 52)
    counted_of_one = counted(str(every_call._base / "one/root"))
    every_call.killed_everywhere(TURN, start, check, least=20)


PUT = (
    SCRIPT
    + """
from gpucache.disk.lock_place import LockPlace
from gpucache.forks import closed_in_child
from gpucache.store.limit import Limit
root = sys.argv[1] + "/root"
kept = Limit(root, LockPlace(root), 10**9)
mark("begin")
for _ in range(3):
    kept.viewed()
mark("end")
"""
)


@pytest.mark.parametrize("there", [False, True], ids=["first", "later"])
def test_a_put_that_is_killed_at_any_system_call_leaves_a_size_that_makes_sense(every_call, there):
    def start(home: Path) -> list[object]:
        (home / "root").mkdir()
        if there:
            updated(str(home / "root"), 5000, anew=True)
        return []

    def check(home: Path, line: str) -> None:
        before = 5000 if there else 0
        now = updated(str(home / "root"), 0)
        assert now is not None, line
        assert now.size_bytes in [before + times * GROUP_BYTES for times in range(4)], line
        assert now.stale is not there, line

    every_call.killed_everywhere(PUT, start, check, least=6)


class TestFaults:
    """Whatever becomes of the sum, or of a process in a turn: the next ones come right again by themselves."""

    @pytest.mark.parametrize("planted", ["fifo", "device", "link", "socket"])
    def test_what_is_no_file_in_place_of_the_sum_is_replaced(self, trees, root, tmp_path, planted):
        path = root / "gpucache/v1/stats/size"
        path.parent.mkdir(exist_ok=True)
        (tmp_path / "outside").write_text("mine")
        if planted == "fifo":
            os.mkfifo(path)
        elif planted == "device":
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        elif planted == "link":
            path.symlink_to(tmp_path / "outside")
        else:
            os.mknod(path, 0o600 | stat.S_IFSOCK)
        kept = keeping(root, counted(str(root)) - 1)
        kept.viewed()
        assert kept._due
        kept.turn()
        assert total(root) == counted(str(root)) <= kept.limit_bytes
        assert (tmp_path / "outside").read_text() == "mine"

    def test_a_directory_in_its_place_turns_off_the_limit_only(self, trees, root):
        (root / "gpucache/v1/stats/size").mkdir(parents=True)
        kept = keeping(root, 1)
        kept.viewed()
        kept.turn()
        assert len(stored(root)) == 10

    @pytest.mark.parametrize("is_draining", [False, True])
    def test_a_sum_that_is_far_too_large_lets_nothing_go(self, trees, root, is_draining):
        size = counted(str(root))
        kept = keeping(root, 2 * size)
        updated(str(root), 10**12, draining=is_draining, anew=True)
        kept.turn()
        assert len(stored(root)) == 10
        assert total(root) == size

    def test_where_the_limit_was_lowered_it_counts_once_and_goes_on(self, trees, root, monkeypatch):
        counts = []
        monkeypatch.setattr(
            "gpucache.store.counting.counted", lambda *words: counts.append(1) or counted(*words)
        )
        monkeypatch.setattr(limit, "_TURN_S", 0.0)
        updated(str(root), counted(str(root)), anew=True)
        kept = keeping(root, counted(str(root)) // 3)
        for _ in range(5):
            kept.turn()
        assert (len(counts), len(stored(root))) == (1, 5)

    def test_an_entry_of_which_the_disk_refuses_everything_keeps_no_other(
        self, trees, root, monkeypatch
    ):
        """It is the oldest, so that every turn begins with it."""
        real = eviction.remove

        def broken(key: str, *words: object) -> object:
            if key == trees[0].key:
                raise OSError(errno.EIO, "input/output error")
            return real(key, *words)

        monkeypatch.setattr(eviction, "remove", broken)
        updated(str(root), counted(str(root)), anew=True)
        keeping(root, 1).turn()
        assert stored(root) == {trees[0].key}

    def test_of_two_limits_the_smaller_one_holds(self, trees, root):
        size = counted(str(root))
        small, large = keeping(root, size // 2), keeping(root, 10**9)
        updated(str(root), size, anew=True)
        for _ in range(3):
            large.turn()
            small.turn()
        assert total(root) == counted(str(root)) <= size // 2
        assert len(stored(root)) == 4

    def test_a_removal_that_was_killed_before_its_views_were_condemned_never_began(
        self, trees, root
    ):
        """Else the views would have lost their entry, and be evicted by nobody."""
        os.rename(trees[0].entry / MANIFEST, trees[0].entry / CONDEMNED)
        os.utime(trees[0].entry, (OLD - 7200, OLD - 7200))
        keeping(root, 10**9).turn()
        assert trees[0].whole(trees[0].entry)
        assert len(stored(root)) == 10

    @pytest.mark.parametrize("views", [True, False])
    def test_what_a_killed_removal_has_condemned_goes_at_the_next_count(self, trees, root, views):
        """The entry with its views, or these alone."""
        condemned = trees[0].directories if views else trees[0].views
        for directory in condemned:
            os.rename(directory / MANIFEST, directory / CONDEMNED)
            os.utime(directory, (OLD - 7200, OLD - 7200))
        if not views:
            shutil.rmtree(trees[0].entry)
        keeping(root, 10**9).turn()
        assert not any(directory.exists() for directory in trees[0].directories)
        assert len(stored(root)) == 9
        assert total(root) == counted(str(root))

    def test_what_a_removal_has_condemned_just_now_stays(self, trees, root):
        os.rename(trees[0].entry / MANIFEST, trees[0].entry / CONDEMNED)
        keeping(root, 10**9).turn()
        assert trees[0].entry.exists()


DRAIN = (
    SCRIPT
    + """
import gpucache.store.eviction, gpucache.store.leftovers
from gpucache.disk.lock_place import LockPlace
from gpucache.forks import closed_in_child
from gpucache.store import limit
limit._TURN_S = 600.0
kept = limit.Limit(sys.argv[2], LockPlace(sys.argv[2]), 1)
mark("begin")
kept.turn()
mark("end")
left = [os.listdir(shard.path) for shard in os.scandir(sys.argv[2] + "/gpucache/v1/store")]
assert not any(left), left
"""
)


@pytest.mark.kills
def test_of_a_turn_killed_at_any_system_call_an_hour_later_nothing_is_left(every_call, tmp_path):
    """With the quarantine, two entries, a view outside the root; once the remains are an hour old."""

    def start(home: Path) -> list[object]:
        for letter in "AB":
            tree = Tree(home, letter * 52)
            tree.staging.forget()
        damaged = Tree(home, "Q" * 52)
        damaged.staging.forget()
        quarantine(str(tree.root), str(damaged.entry))
        for view in damaged.views:
            shutil.rmtree(view)
        outside = home / "outside"
        outside.mkdir()
        assert tree.link(outside / ("B" * 52))
        set_used(tree.entry, OLD)
        foreign._remembered.clear()
        foreign.remember(str(tree.root), str(outside))
        updated(str(tree.root), 0, anew=True, now=0.0)
        return [tree.root]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        aged(root)
        aged(home / "outside")
        count_anew_later(str(root))
        kept = keeping(root, 1)
        kept.turn()
        assert stored(root) == set(), line
        assert total(root) == counted(str(root)) == 0, line
        left = [*root.rglob(MANIFEST), *root.rglob(CONDEMNED), *root.rglob(f"{ASIDE}*")]
        assert left == [], line
        assert not list(root.glob("gpucache/v1/quarantine/*")), line

    # What is between two writes of the sum is between other calls as well.
    every_call.killed_everywhere(DRAIN, start, check, 40, once={"pwrite64"})
