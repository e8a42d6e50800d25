"""The counters of ended processes are folded by whoever comes by, and at no moment does a total change by that."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tree
from support.every_call import SCRIPT
from support.processes import PATIENCE_S, SPAWN

from gpucache.disk.node import node_id
from gpucache.layout import paths
from gpucache.store import counter_files, counter_fold, counter_look
from gpucache.store.counter_fold import fold
from gpucache.store.counts import Where, this_hour
from gpucache.store.stats import Stats, hours, totals


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """Where the counters below the root `tmp_path` are."""
    return paths.ours(str(tmp_path), "stats")


def counted(directory: str, hits: int = 1, device: str = "0") -> str:
    """The path of the file of a process that has counted hits and ended."""
    before = set(names(directory)) if os.path.isdir(directory) else set()
    file = counter_files.OwnFile(directory)
    file.write(Where("node", device, this_hour()), {"hits": hits})
    file.close()
    (name,) = set(names(directory)) - before
    return f"{directory}/{name}"


@contextmanager
def no_fold() -> Iterator[None]:
    """Let nothing be folded by the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpucache.store.counter_fold.fold_few", lambda directory: None)
        yield


def names(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


def kinds(directory: str) -> list[str]:
    """How the names of the files end, sorted."""
    return sorted(name.rpartition(".")[2] for name in os.listdir(directory))


def of_another_node(path: str) -> str:
    """Give a file the name that another node's process would have given it."""
    parent, name = os.path.split(path)
    theirs = f"{parent}/0badcafe{name[8:]}"
    os.rename(path, theirs)
    return theirs


def by_another_mount(path: str) -> str:
    """Give a file the name that a process of this node had given it which sees the directory by another mount."""
    theirs = re.sub(r"@[0-9a-f]+", "@fffff", path)
    assert theirs != path
    os.rename(path, theirs)
    return theirs


def age(path: str, seconds: float = 87000.0) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def on_node(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    """Go on as a process of another node: its files are named for it, and no lock of the others reaches it."""
    node = node.rjust(8, "0")
    for module in (counter_files, counter_fold):
        monkeypatch.setattr(module, "node_id", lambda: node)
    monkeypatch.setattr(counter_fold, "is_locked_here", lambda name, _: name.startswith(node))
    real = os_flock

    def flock(fd: int, how: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name.startswith((node, f"publish-{node}")):
            real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)


os_flock = fcntl.flock


def old_format(directory: str, name: str, said: object) -> Path:
    """Write a file as a gpucache before this format has."""
    os.makedirs(directory, exist_ok=True)
    path = Path(directory, name)
    path.write_text(json.dumps(said).ljust(2048))
    return path


def hits(root: Path) -> float:
    return sum(values.get("hits", 0) for values in totals(str(root)).values())


COUNT = """
import sys
from gpucache.store.stats import Stats
Stats(sys.argv[1], "0").add("hits", now=True)
"""


class TestWhoFolds:
    def test_processes_that_come_and_go_leave_no_file_each(self, tmp_path, directory, python):
        for _ in range(12):
            assert python(COUNT, directory).returncode == 0
            assert len(names(directory)) == 1
        assert totals(str(tmp_path)) == {"0": {"hits": 12}}

    def test_a_process_that_starts_folds_what_killed_ones_have_left(self, tmp_path, directory):
        for _ in range(5):
            counted(directory)
        Stats(directory, "0").add("hits", now=True)
        assert kinds(directory) == ["counts", "folded"]
        assert totals(str(tmp_path)) == {"0": {"hits": 6}}

    @pytest.mark.parametrize(
        "words",
        [["stats"], ["ls"], ["du"], ["prune", "--max-age", "1d", "--yes"], ["clean", "--yes"]],
        ids=lambda words: words[0],
    )
    def test_each_command_that_reads_folds_and_changes_no_total(
        self, tmp_path, directory, words, gpucache
    ):
        for device in "001":
            counted(directory, 2, device)
        done = gpucache(*words, "--root", tmp_path)
        assert done.returncode == 0, done.stderr
        assert kinds(directory) == ["folded"]
        assert totals(str(tmp_path)) == {"0": {"hits": 4}, "1": {"hits": 2}}

    def test_a_launch_folds_some_and_a_command_all(self, tmp_path, directory):
        for _ in range(counter_fold._FEW + 10):
            counted(directory)
        counter_fold.fold_few(directory)
        assert 10 <= len(names(directory)) <= 11
        for _ in range(counter_fold._MANY + 10):
            counted(directory)
        fold(str(tmp_path))
        assert kinds(directory) == ["folded"]
        assert hits(tmp_path) == counter_fold._FEW + counter_fold._MANY + 20

    def test_a_living_process_keeps_its_file(self, tmp_path, directory):
        counters = Stats(directory, "0")
        counters.add("hits", now=True)
        counted(directory)
        counted(directory)
        assert fold(str(tmp_path)) == 2
        counters.add("hits", now=True)
        assert kinds(directory) == ["counts", "folded"]
        assert hits(tmp_path) == 4

    def test_without_counters_there_is_nothing_to_do(self, tmp_path):
        assert fold(str(tmp_path)) == 0
        assert totals(str(tmp_path)) == {}
        assert list(tmp_path.iterdir()) == []

    def test_one_file_alone_is_not_written_again(self, tmp_path, directory):
        counted(directory)
        assert fold(str(tmp_path)) == 1
        before = names(directory)
        assert fold(str(tmp_path)) == 0
        assert names(directory) == before

    def test_a_process_whose_file_is_new_is_not_folded_away(self, tmp_path, directory, monkeypatch):
        """Between making its file and locking it, a process looks dead."""
        real = fcntl.flock

        def flock_after_a_fold(fd: int, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", real)
            assert fold(str(tmp_path)) == 0
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock_after_a_fold)
        Stats(directory, "0").add("hits", now=True)
        assert totals(str(tmp_path)) == {"0": {"hits": 1}}


class TestNobodyWaits:
    def test_two_folds_at_once_take_different_files_and_lose_none(
        self, tmp_path, directory, monkeypatch
    ):
        """The second begins while the first has its files in hand, and a third process ends in between."""
        for _ in range(3):
            counted(directory)
        real = counter_fold._write

        def write_beside_another(*args: object) -> None:
            monkeypatch.setattr(counter_fold, "_write", real)
            for _ in range(3):
                counted(directory)
            assert fold(str(tmp_path)) == 3
            assert hits(tmp_path) == 6
            real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(counter_fold, "_write", write_beside_another)
        assert fold(str(tmp_path)) == 3
        assert hits(tmp_path) == 6
        fold(str(tmp_path))
        assert kinds(directory) == ["folded"]
        assert hits(tmp_path) == 6

    @pytest.mark.parametrize("held", ["folded", "lock", "directory"])
    def test_a_lock_that_is_held_for_ever_keeps_nobody_from_reading_and_folding(
        self, tmp_path, directory, held
    ):
        counted(directory)
        fold(str(tmp_path))
        (folded,) = names(directory)
        Path(directory, "lock").touch()
        path = {"folded": folded, "lock": "lock", "directory": "."}[held]
        fd = os.open(f"{directory}/{path}", os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for _ in range(3):
                counted(directory)
            old_format(directory, f"{node_id()}.a.1.1.json", {"device": "0", "values": {"hits": 1}})
            assert hits(tmp_path) == 5
            assert fold(str(tmp_path)) >= 3
            assert hits(tmp_path) == 5
        finally:
            os.close(fd)

    @pytest.mark.parametrize("what", ["fifo", "directory", "link"])
    def test_what_lies_in_the_place_of_the_lock_keeps_nobody_from_reading_and_folding(
        self, tmp_path, directory, what
    ):
        counted(directory)
        counted(directory)
        old_format(directory, f"{node_id()}.a.1.1.json", {"device": "0", "values": {"hits": 1}})
        lock = f"{directory}/lock"
        make = {"fifo": os.mkfifo, "directory": os.mkdir}
        if what == "link":
            os.symlink("/dev/zero", lock)
        else:
            make[what](lock)
        assert fold(str(tmp_path)) == 2
        assert hits(tmp_path) == 3


class TestRefusals:
    @pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
    @pytest.mark.parametrize("call", ["rename", "open"])
    def test_a_disk_that_refuses_changes_nothing(
        self, tmp_path, directory, monkeypatch, call, refusal
    ):
        for _ in range(3):
            counted(directory)
        before = names(directory)
        real = getattr(os, call)

        def refuse(path: str, *args: object, **named: object) -> object:
            if str(path).startswith("publish-"):
                raise OSError(refusal, os.strerror(refusal))
            return real(path, *args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(OSError):
                fold(str(tmp_path))
            Stats(directory, "0").add("hits", now=True)  # nobody is told on a launch
        assert names(directory) == before
        assert hits(tmp_path) == 3
        assert fold(str(tmp_path)) == 3

    @pytest.mark.parametrize("endings", [(".counts",), (".counts", ".folded")])
    def test_files_that_cannot_be_removed_stay_named_and_count_once(
        self, tmp_path, directory, monkeypatch, endings
    ):
        for _ in range(3):
            counted(directory)
        real = os.unlink

        def refuse(path: str, **named: Any) -> None:
            if path.endswith(endings):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            real(path, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            assert fold(str(tmp_path)) == 3
            assert fold(str(tmp_path)) == 0
            for more in (1, 2, 3):
                counted(directory)
                assert fold(str(tmp_path)) == 1
                assert hits(tmp_path) == 3 + more
        fold(str(tmp_path))
        assert kinds(directory) == ["folded"]
        assert hits(tmp_path) == 6

    def test_a_root_that_is_read_only_is_summed(self, tmp_path, mount):
        root = mount(tmp_path / "root", "-t", "tmpfs", "none")
        directory = paths.ours(str(root), "stats")
        for _ in range(2):
            counted(directory)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        assert hits(root) == 2
        with pytest.raises(OSError, match="Read-only"):
            fold(str(root))
        assert hits(root) == 2

    def test_a_full_disk_costs_the_counters_of_then_alone(self, tmp_path, mount):
        root = mount(tmp_path / "root", "-t", "tmpfs", "-o", "size=64k", "none")
        directory = paths.ours(str(root), "stats")
        for _ in range(2):
            counted(directory)
        filler = root / "filler"
        done = subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], capture_output=True)
        assert b"No space" in done.stderr
        counters = Stats(directory, "0")
        counters.add("hits", now=True)
        with pytest.raises(OSError, match="No space"):
            fold(str(root))
        assert hits(root) == 2
        filler.unlink()
        counters.flush()
        assert fold(str(root)) == 2
        assert hits(root) == 3


class TestAnotherUser:
    pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")

    def test_root_leaves_to_the_owner_what_it_makes_in_his_directory(self, tmp_path, directory):
        os.makedirs(directory)
        os.chown(directory, 12345, 12345)
        counted(directory)
        counted(directory)
        assert {os.stat(f"{directory}/{name}").st_uid for name in names(directory)} == {12345}
        fold(str(tmp_path))
        assert {os.stat(f"{directory}/{name}").st_uid for name in names(directory)} == {12345}

    def test_a_user_who_does_not_own_the_directory_folds_nothing(
        self, tmp_path, directory, monkeypatch
    ):
        for _ in range(3):
            counted(directory)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert fold(str(tmp_path)) == 0
        counter_fold.fold_few(directory)
        assert kinds(directory) == ["counts"] * 3

    def test_what_cannot_be_read_is_left_where_it_is(self, tmp_path, directory, monkeypatch):
        for _ in range(3):
            counted(directory)
        closed = names(directory)[0]
        real = os.open

        def refuse(path: str, *args: object, **named: object) -> int:
            if path == closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *args, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert fold(str(tmp_path)) == 2
            assert hits(tmp_path) == 2
        assert hits(tmp_path) == 3
        assert fold(str(tmp_path)) == 1


class TestAnotherNode:
    """No lock of another node's can be seen here: a day of silence tells that its process has ended."""

    @pytest.mark.parametrize("renamed", [of_another_node, by_another_mount])
    def test_its_counters_are_summed_and_folded_only_after_a_day_of_silence(
        self, tmp_path, directory, renamed
    ):
        """Likewise those of a pod of this node that has a mount of its own."""
        theirs = renamed(counted(directory, 3))
        assert fold(str(tmp_path)) == 0
        assert hits(tmp_path) == 3
        age(theirs)
        assert fold(str(tmp_path)) == 1
        assert hits(tmp_path) == 3
        assert not os.path.exists(theirs)

    def test_a_process_that_was_folded_while_it_was_silent_counts_on_and_nothing_twice(
        self, tmp_path, directory, monkeypatch
    ):
        counters = Stats(directory, "0")
        counters.add("hits", 3, now=True)
        (name,) = names(directory)
        age(f"{directory}/{name}")
        with monkeypatch.context() as patch:
            on_node(patch, "0badcafe")
            assert fold(str(tmp_path)) == 1
        counters.add("hits", 2, now=True)
        counters.add("misses", 1, now=True)
        assert totals(str(tmp_path)) == {"0": {"hits": 5, "misses": 1}}

    def test_of_two_nodes_that_take_one_file_only_one_folds_it(
        self, tmp_path, directory, monkeypatch
    ):
        """Each has read the file when the other comes."""
        age(of_another_node(counted(directory, 3)))
        real = counter_fold._claimed

        def claimed_after_another_node(here: int, held: object) -> str | None:
            monkeypatch.setattr(counter_fold, "_claimed", real)
            with monkeypatch.context() as patch:
                on_node(patch, "0badf00d")
                assert fold(str(tmp_path)) == 1
            assert hits(tmp_path) == 3
            return real(here, held)  # type: ignore[arg-type]

        monkeypatch.setattr(counter_fold, "_claimed", claimed_after_another_node)
        assert fold(str(tmp_path)) == 0
        assert hits(tmp_path) == 3

    def test_what_it_has_claimed_is_its_own_for_a_day(self, tmp_path, directory):
        theirs = of_another_node(counted(directory, 3))
        age(theirs)
        known = os.path.basename(theirs).removesuffix(".counts")
        claimed = f"{directory}/0badf00d.claimed.1.1~{known}.counts"
        os.rename(theirs, claimed)
        os.utime(claimed)
        assert fold(str(tmp_path)) == 0
        assert hits(tmp_path) == 3
        age(claimed)
        assert fold(str(tmp_path)) == 1
        assert hits(tmp_path) == 3

    def test_what_it_has_folded_is_taken_over_after_a_day(self, tmp_path, directory):
        for _ in range(2):
            counted(directory)
        fold(str(tmp_path))
        (name,) = names(directory)
        theirs = of_another_node(f"{directory}/{name}")
        counted(directory)
        assert fold(str(tmp_path)) == 0, "one file in the place of another is no gain"
        counted(directory)
        assert fold(str(tmp_path)) == 2
        assert kinds(directory) == ["folded", "folded"]
        age(theirs)
        fold(str(tmp_path))
        assert kinds(directory) == ["folded"]
        assert hits(tmp_path) == 4


class TestTheFormatBefore:
    """A gpucache of before may still run on the same root: neither counts anything of the other twice."""

    def test_its_files_are_summed_and_folded(self, tmp_path, directory):
        process = f"{node_id()}.node.1.abc.json"
        old_format(directory, process, {"device": "0", "values": {"hits": 1, "saved_s": 0.5}})
        old_format(directory, "folded.json", [{"device": "0", "values": {"hits": 10}}])
        younger = old_format(directory, "node.1.abc.json", {"device": "1", "values": {"hits": 100}})
        sums = {"0": {"hits": 11, "saved_s": 0.5}, "1": {"hits": 100}}
        assert totals(str(tmp_path)) == sums
        assert fold(str(tmp_path)) == 2
        assert totals(str(tmp_path)) == sums
        assert younger.exists(), "its name does not say of which node it is"
        age(str(younger))
        assert fold(str(tmp_path)) == 1
        assert totals(str(tmp_path)) == sums
        assert kinds(directory) == ["folded", "lock"]

    def test_its_living_process_goes_on_counting(self, tmp_path, directory):
        path = old_format(
            directory, f"{node_id()}.node.1.abc.json", {"device": "0", "values": {"hits": 1}}
        )
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert fold(str(tmp_path)) == 0
            assert path.exists()
        assert fold(str(tmp_path)) == 1
        assert hits(tmp_path) == 1

    def test_a_folded_file_of_its_that_comes_again_is_another_one(self, tmp_path, directory):
        for amount in (1, 10, 100):
            old_format(directory, "folded.json", [{"device": "0", "values": {"hits": amount}}])
            fold(str(tmp_path))
        assert hits(tmp_path) == 111

    def test_nothing_is_claimed_while_it_folds(self, tmp_path, directory):
        path = old_format(
            directory, f"{node_id()}.node.1.abc.json", {"device": "0", "values": {"hits": 1}}
        )
        with open(f"{directory}/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fold(str(tmp_path))
            assert path.exists()


class TestReaders:
    """`totals` reads beside anything, and writes nothing."""

    @pytest.mark.parametrize("folded", [False, True], ids=["never-folded", "folded"])
    def test_reading_writes_nothing(self, tmp_path, directory, folded):
        for _ in range(2):
            counted(directory)
        if folded:
            fold(str(tmp_path))

        def state() -> dict[Path, tuple[int, int]]:
            found = {}
            for path in [tmp_path, *tmp_path.rglob("*")]:
                one = path.lstat()
                found[path] = (one.st_ino, one.st_mtime_ns)
            return found

        before = state()
        assert totals(str(tmp_path)) == {"0": {"hits": 2}}
        assert state() == before

    @pytest.mark.parametrize("moment", range(7))
    def test_a_fold_at_any_moment_of_a_reading_changes_no_sum(
        self, tmp_path, directory, monkeypatch, moment
    ):
        """At the n-th file that the reader opens, or list that it makes, a whole fold runs."""
        for _ in range(3):
            counted(directory)
        fold(str(tmp_path))
        for _ in range(3):
            counted(directory)
        left = moment
        read, listed = counter_look.read, counter_look.listed

        def then(call: Callable[..., object]) -> Callable[..., object]:
            def called(*args: object) -> object:
                nonlocal left
                left -= 1
                if left == -1:
                    fold(str(tmp_path))
                    counted(directory)
                return call(*args)

            return called

        monkeypatch.setattr(counter_look, "read", then(read))
        monkeypatch.setattr(counter_look, "listed", then(listed))
        assert hits(tmp_path) in (6, 7)
        assert left < 0, "the fold came"
        assert hits(tmp_path) == 7

    def test_a_directory_that_goes_while_it_is_read_counts_nothing(
        self, tmp_path, directory, monkeypatch
    ):
        counted(directory)
        real = counter_look.read

        def read_what_is_gone(here: int, name: str) -> object:
            shutil.rmtree(directory, ignore_errors=True)
            return real(here, name)

        monkeypatch.setattr(counter_look, "read", read_what_is_gone)
        assert totals(str(tmp_path)) == {}

    def test_folds_without_end_keep_a_reader_for_a_bounded_time(
        self, tmp_path, directory, monkeypatch
    ):
        counted(directory)
        real = counter_look.listed
        lists = 0

        def listed_after_a_fold(here: int) -> dict[str, str]:
            nonlocal lists
            lists += 1
            Path(directory, f"{node_id()}.folded.{lists}.1.folded").write_text("{}")
            return real(here)

        monkeypatch.setattr(counter_look, "listed", listed_after_a_fold)
        assert hits(tmp_path) == 1
        assert lists <= counter_look._TRIES + 2

    @pytest.mark.parametrize("moment", range(4))
    def test_a_process_that_writes_at_any_moment_of_a_reading_is_read_whole(
        self, tmp_path, directory, monkeypatch, moment
    ):
        """The reader sees no less than was written before it began."""
        counters = Stats(directory, "0")
        for _ in range(6):
            counters.add("hits", now=True)
        real = counter_files._slot
        left = moment

        def slot_after_writes(text: bytes) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                for _ in range(3):
                    counters.add("hits", now=True)
                return None  # this copy was being written when it was read
            return real(text)

        monkeypatch.setattr(counter_files, "_slot", slot_after_writes)
        assert 6 <= hits(tmp_path) <= 9


GARBAGE = {
    "empty": b"",
    "torn": b'{"device": "0", "values": {"hi',
    "not text": b"\xff\xfe\x00",
    "number": b"5",
    "null": b"null",
    "list of numbers": b"[1, 2]",
    "other object": b'{"a": 1}',
    "device that is none": b'{"device": 7, "values": {"hits": 1}}',
    "values that are none": b'{"device": "0", "values": [1]}',
    "unknown counters": b'{"device": "0", "values": {"bites": 1, "hits": "many"}}',
    "deep": b"[" * 100_000,
    "huge number": b'{"device": "0", "values": {"hits": ' + b"9" * 5000 + b"}}",
    "no number": b'{"device": "0", "values": {"hits": NaN, "misses": Infinity}}',
    "sums that are none": b'{"absorbed": 5, "sums": {"h": {"0": {"x": {"hits": -1}, "1": 2}}}}',
    "deep sums": b'{"absorbed": [[{}]], "sums": {"h": {"0": [[[[]]]]}}}',
}


class TestGarbage:
    @pytest.mark.parametrize("suffix", ["counts", "folded", "json"])
    @pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
    def test_it_is_passed_over_and_folded_away(self, tmp_path, directory, text, suffix):
        counters = Stats(directory, "0")
        counters.add("hits", now=True)
        path = Path(directory, f"{node_id()}.node.1.abc.{suffix}")
        path.write_bytes(text)
        counted(directory)
        assert totals(str(tmp_path)) == {"0": {"hits": 2}}
        assert fold(str(tmp_path)) >= 1
        assert totals(str(tmp_path)) == {"0": {"hits": 2}}
        assert not path.exists()

    def test_a_copy_with_a_right_checksum_and_nonsense_is_none(self, tmp_path, directory):
        import zlib

        for number, said in enumerate(({}, [], {"turn": "x"}, {"turn": 1e999}, 5)):
            text = json.dumps(said).encode().ljust(counter_files._SLOT - 9)
            slot = b"%08x %b" % (zlib.crc32(text), text)
            os.makedirs(directory, exist_ok=True)
            Path(directory, f"{node_id()}.node.{number}.abc.counts").write_bytes(slot + slot)
        assert totals(str(tmp_path)) == {}
        assert fold(str(tmp_path)) == 5


# ---- kills


FOLDING = (
    SCRIPT
    + """
from gpucache.store.counter_fold import fold
mark("begin")
fold(sys.argv[1] + "/root")
mark("end")
"""
)


def test_a_fold_that_is_killed_at_any_moment_changes_no_sum(every_call):
    """A kill before each system call of a fold, one that takes files of every kind."""

    def start(home: Path) -> list[object]:
        root = home / "root"
        directory = paths.ours(str(root), "stats")
        for _ in range(2):
            counted(directory)
        fold(str(root))
        for _ in range(2):
            counted(directory)
        age(of_another_node(counted(directory)))
        old = {"device": "0", "values": {"hits": 1}}
        old_format(directory, f"{node_id()}.node.1.abc.json", old)
        old_format(directory, "folded.json", [old])
        return []

    def check(home: Path, line: str) -> None:
        root = home / "root"
        assert hits(root) == 7, line
        counted(paths.ours(str(root), "stats"))
        fold(str(root))
        assert hits(root) == 8, line
        left = [name for name in names(paths.ours(str(root), "stats")) if name.endswith("folded")]
        assert len(left) == 1, line

    every_call.killed_everywhere(FOLDING, start, check, 14)


COUNTING = (
    SCRIPT
    + """
from gpucache.store import stats
mark("begin")
hour = 1000
stats.this_hour = lambda: hour
counters = stats.Stats(sys.argv[1] + "/root/gpucache/v1/stats", "0")
for hour in (1000, 1001):
    for _ in range(3):
        counters.add("hits", now=True)
        print("counted", file=open(sys.argv[1] + "/counted", "a"))
stats._leave_all()
mark("end")
"""
)


def test_a_process_that_is_killed_at_any_moment_loses_what_it_had_not_written(every_call):
    def start(home: Path) -> list[object]:
        counted(paths.ours(str(home / "root"), "stats"), 10)
        (home / "counted").touch()
        return []

    def check(home: Path, line: str) -> None:
        root = home / "root"
        told = len((home / "counted").read_text().splitlines())
        assert 10 + told <= hits(root) <= 11 + told, line
        fold(str(root))
        assert 10 + told <= hits(root) <= 11 + told, line

    every_call.killed_everywhere(COUNTING, start, check, 20)


# ---- everything at once


class Killed(BaseException):
    """Stands for a kill: what was begun is not cleaned up."""


class Steps:
    """Lets a fold, in this process, be killed before its n-th change of the disk: nothing changes any more then.

    Before each change ``between`` is called, as if other processes went on there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        self.between: Callable[[], None] | None = None
        for name in ("rename", "unlink", "utime"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **named: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise Killed
            between, self.between = self.between, None
            if between is not None:
                left, self.left = self.left, 10**9
                between()
                self.left, self.between = left, between
            return call(*args, **named)

        return called


@pytest.mark.parametrize("seed", range(12))
def test_whoever_writes_folds_and_dies_in_whatever_order_the_totals_are_exact(
    tmp_path, directory, monkeypatch, seed
):
    """Random interleavings of processes of three nodes, of folds that are killed at a random step, and of readers.

    Readers, counts and folds of other nodes come between any two steps of a fold as well.
    """
    draw = random.Random(seed)
    steps = Steps(monkeypatch)
    living: list[Stats] = []
    written = 0
    node = ""

    def is_exact() -> None:
        assert hits(tmp_path) == written, "it is exact, and so it never falls"

    def count() -> None:
        nonlocal written
        amount = draw.randrange(1, 4)
        draw.choice(living).add("hits", amount, now=True)
        written += amount

    def others() -> None:
        """What other processes do between two steps of a fold."""
        is_exact()
        if living and draw.random() < 0.3:
            count()
        if draw.random() < 0.2:
            on_node(monkeypatch, draw.choice("abc".replace(node, "")))
            fold(str(tmp_path))
            on_node(monkeypatch, node)
        is_exact()

    with no_fold():
        for _ in range(200):
            node = draw.choice("abc")
            on_node(monkeypatch, node)
            turn = draw.random()
            if turn < 0.2:
                living.append(Stats(directory, draw.choice("01")))
            elif turn < 0.5 and living:
                count()
            elif turn < 0.65 and living:
                living.pop(draw.randrange(len(living))).forget()
            elif turn < 0.75 and os.path.isdir(directory):
                for name in names(directory):
                    age(f"{directory}/{name}", draw.choice([0.0, 50_000.0, 90_000.0]))
            elif turn < 0.9:
                steps.left, steps.between = draw.randrange(16), others
                with suppress(Killed):
                    fold(str(tmp_path))
                steps.left, steps.between = 10**9, None
            is_exact()
        for counters in living:
            counters.leave()
        for name in names(directory):
            age(f"{directory}/{name}")
        fold(str(tmp_path))
    is_exact()
    assert kinds(directory) == ["folded"]
    by_hour = sum(values["hits"] for values in hours(str(tmp_path)).values())
    assert by_hour == written


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_while_somebody_reads_no_count_is_missed_or_read_twice(
    tmp_path, directory, monkeypatch, seed
):
    """Processes count, end and fold, and folds are killed, at any file that the reader opens and any list that it has.

    What is read is no less than what was counted before, and no more than what is counted after.
    """
    draw = random.Random(seed)
    steps = Steps(monkeypatch)
    living: list[Stats] = []
    written = 0
    is_reading = False

    def something() -> None:
        nonlocal written
        turn = draw.random()
        if turn < 0.2:
            living.append(Stats(directory, "0"))
        elif turn < 0.5 and living:
            draw.choice(living).add("hits", now=True)
            written += 1
        elif turn < 0.7 and living:
            living.pop(draw.randrange(len(living))).forget()
        elif turn < 0.9:
            steps.left = draw.randrange(12)
            with suppress(Killed):
                fold(str(tmp_path))
            steps.left = 10**9

    def beside(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object) -> object:
            nonlocal is_reading
            if is_reading and draw.random() < 0.3:
                is_reading = False
                something()
                is_reading = True
            return call(*args)

        return called

    monkeypatch.setattr(counter_look, "read", beside(counter_look.read))
    monkeypatch.setattr(counter_look, "listed", beside(counter_look.listed))
    with no_fold():
        for _ in range(150):
            something()
            before = written
            is_reading = True
            now = hits(tmp_path)
            is_reading = False
            assert before <= now <= written
    for counters in living:
        counters.leave()


class OldProcess:
    """What a process of the format before did: one file, rewritten, under a lock for life."""

    def __init__(self, directory: str, number: int) -> None:
        os.makedirs(directory, exist_ok=True)
        path = f"{directory}/{node_id()}.node.{number}.abc.json"
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.hits = 0

    def count(self, hits: int) -> None:
        self.hits += hits
        said = {"device": "0", "values": {"hits": self.hits}}
        os.pwrite(self.fd, json.dumps(said).encode().ljust(2048), 0)


def old_fold(directory: str) -> None:
    """What a fold of the format before did, under its lock."""
    with open(f"{directory}/lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = []
        for path in sorted(Path(directory).glob("*.json")):
            with path.open("rb") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                dead.append(path)
        total = 0
        for path in dead:
            said = json.loads(path.read_text() or "[]")
            items = said if isinstance(said, list) else [said]
            total += sum(item.get("values", {}).get("hits", 0) for item in items)
        said = [{"device": "0", "values": {"hits": total}}]
        Path(directory, "folding").write_text(json.dumps(said))
        os.rename(f"{directory}/folding", f"{directory}/folded.json")
        for path in dead:
            if path.name != "folded.json":
                path.unlink()


@pytest.mark.parametrize("seed", range(6))
def test_beside_a_gpucache_of_the_format_before_the_totals_are_exact(
    tmp_path, directory, monkeypatch, seed
):
    """Random interleavings of processes and folds of both formats, our folds killed at a random step."""
    draw = random.Random(seed)
    steps = Steps(monkeypatch)
    old: list[OldProcess] = []
    new = Stats(directory, "0")
    written = 0
    with no_fold():
        for number in range(200):
            turn = draw.random()
            if turn < 0.15:
                old.append(OldProcess(directory, number))
            elif turn < 0.4 and old:
                draw.choice(old).count(2)
                written += 2
            elif turn < 0.5:
                new.add("hits", 3, now=True)
                written += 3
            elif turn < 0.6:
                new.leave()
            elif turn < 0.7 and old:
                os.close(old.pop(draw.randrange(len(old))).fd)
            elif turn < 0.8 and os.path.isdir(directory):
                old_fold(directory)
            else:
                steps.left = draw.randrange(12)
                try:
                    fold(str(tmp_path))
                except Killed:
                    pass
                finally:
                    steps.left = 10**9
            assert hits(tmp_path) == written
    for process in old:
        os.close(process.fd)
    new.leave()
    for staged in Path(directory).glob("publish-*"):
        age(str(staged), 3700.0)  # a killed fold left it
    fold(str(tmp_path))
    assert hits(tmp_path) == written
    assert kinds(directory) == ["folded", "lock"]


def test_what_is_removed_from_a_cache_takes_no_count_with_it(tmp_path, directory, gpucache):
    """Nor does the record of a host that is no more."""
    tree.make(str(tmp_path), 2, 2)
    for device in "01":
        counted(directory, 3, device)
    before = totals(str(tmp_path))
    for words in (["prune", "--max-entries", "1", "--yes"], ["clean", "--force", "--yes"]):
        done = gpucache(*words, "--root", tmp_path)
        assert done.returncode == 0, done.stderr
        assert totals(str(tmp_path)) == before
    shutil.rmtree(paths.ours(str(tmp_path), "devices"))
    assert totals(str(tmp_path)) == before


def _live_and_die(directory: str, lives: int) -> None:
    for _ in range(lives):
        counters = Stats(directory, "0")
        counters.add("hits", now=True)
        counters.add("hits", now=True)
        counters.forget()


def _fold_until(root: str, over: object) -> None:
    while not over.is_set():  # type: ignore[attr-defined]
        fold(root)


def test_beside_processes_that_come_go_and_fold_the_totals_stay_exact(tmp_path, directory):
    """Real processes: four that count, begin and end, each of which folds, and one more that folds all the time."""
    os.makedirs(directory)
    over = SPAWN.Event()
    folder = SPAWN.Process(target=_fold_until, args=(str(tmp_path), over))
    workers = [SPAWN.Process(target=_live_and_die, args=(directory, 100)) for _ in range(4)]
    for process in (folder, *workers):
        process.start()
    last, end = 0.0, time.monotonic() + 2 * PATIENCE_S
    while any(worker.is_alive() for worker in workers):
        assert time.monotonic() < end
        now = totals(str(tmp_path)).get("0", {}).get("hits", 0)
        assert now >= last, "a reader never sees less"
        last = now
    over.set()
    for process in (folder, *workers):
        process.join(PATIENCE_S)
    assert [process.exitcode for process in (folder, *workers)] == [0] * 5
    assert totals(str(tmp_path)) == {"0": {"hits": 800}}
    fold(str(tmp_path))
    assert totals(str(tmp_path)) == {"0": {"hits": 800}}
    assert kinds(directory) == ["folded"]
