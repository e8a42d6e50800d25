from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, SPAWN, lock_holder
from support.users import ADA, acting_as

from gpucache.disk import files
from gpucache.disk.files import make_directory, remove_tree, size_of, write_new, write_whole
from gpucache.disk.locks import locked
from gpucache.errors import LockTimeoutError, ProvisionError
from gpucache.layout import paths


@contextmanager
def processes(target: Callable[..., None], arguments: list[tuple[object, ...]]) -> Iterator[None]:
    """Run one process for each tuple of arguments beside the body; all must end well."""
    started = [SPAWN.Process(target=target, args=each) for each in arguments]
    for process in started:
        process.start()
    try:
        yield
        for process in started:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def umask_zero() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


class TestMakeDirectory:
    def test_every_directory_it_makes_is_private_whatever_the_umask(self, tmp_path, umask_zero):
        tmp_path.chmod(0o755)
        assert make_directory(str(tmp_path / "a" / "b" / "c")) is True
        assert [mode(tmp_path / part) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3
        assert mode(tmp_path) == 0o755

    def test_one_that_is_there_is_left_as_it_is(self, tmp_path):
        there = tmp_path / "there"
        there.mkdir()
        there.chmod(0o2775)
        assert make_directory(str(there)) is False
        assert mode(there) == 0o2775

    def test_a_link_to_a_directory_will_do(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path)
        assert make_directory(str(tmp_path / "link")) is False
        assert make_directory(str(tmp_path / "link" / "below")) is True

    @pytest.mark.parametrize("below", ["", "below", "far/below"])
    def test_a_file_in_the_way_is_told(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ProvisionError, match=re.escape(str(tmp_path / "file"))) as caught:
            make_directory(str(tmp_path / "file" / below).rstrip("/"))
        assert caught.value.errno == errno.ENOTDIR
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_link_to_nowhere_is_in_the_way(self, tmp_path, below):
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(
            ProvisionError, match="link: .*; choose another root, or move that away"
        ) as caught:
            make_directory(str(tmp_path / "link" / below).rstrip("/"))
        assert caught.value.errno == errno.ENOTDIR

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
    def test_a_place_where_nothing_can_be_made_is_told(self):
        """Linux answers ENOENT in /proc although the parent is there."""
        with pytest.raises(ProvisionError, match="/proc/cache") as caught:
            make_directory("/proc/cache/triton")
        assert caught.value.errno == errno.ENOENT

    def test_a_current_directory_that_is_gone_is_told(self, tmp_path, monkeypatch):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        with pytest.raises(ProvisionError) as caught:
            make_directory("relative/path")
        assert caught.value.errno == errno.ENOENT

    def test_the_loser_of_a_race_is_told_so(self, tmp_path, monkeypatch):
        """Another process makes everything while this one makes the parent."""
        mkdir = os.mkdir

        def then_the_winner_comes(path, mode):
            try:
                mkdir(path, mode)
            except FileNotFoundError:
                mkdir(tmp_path / "a", mode)
                mkdir(tmp_path / "a" / "b", mode)
                raise

        monkeypatch.setattr(os, "mkdir", then_the_winner_comes)
        assert make_directory(str(tmp_path / "a" / "b")) is False

    def test_one_of_many_processes_is_told_that_it_made_it(self, tmp_path):
        count, rounds = 6, 20
        results = SPAWN.SimpleQueue()
        start = SPAWN.Barrier(count)
        with processes(make_directories, [(str(tmp_path), rounds, start, results)] * count):
            told = [results.get() for _ in range(count)]
        assert [sum(each) for each in zip(*told, strict=True)] == [1] * rounds

    def test_one_of_many_threads_is_told_that_it_made_it(self, tmp_path):
        count, rounds = 8, 20
        told: list[list[bool]] = []
        start = threading.Barrier(count)

        class Results:
            put = staticmethod(told.append)

        threads = [
            threading.Thread(target=make_directories, args=(str(tmp_path), rounds, start, Results))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [sum(each) for each in zip(*told, strict=True)] == [1] * rounds


def make_directories(base, rounds, start, results):
    made = []
    for number in range(rounds):
        start.wait(PATIENCE_S)
        made.append(make_directory(f"{base}/{number}/below/further"))
    results.put(made)


class TestPublish:
    @pytest.fixture
    def staging(self, tmp_path: Path) -> Path:
        directory = tmp_path / "staging"
        directory.mkdir()
        return directory

    def test_the_file_is_there_and_nothing_else(self, tmp_path, staging):
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert (tmp_path / "file").read_bytes() == b"content"
        assert mode(tmp_path / "file") == 0o600
        assert not list(staging.iterdir())

    def test_what_root_writes_is_the_owners_of_the_directory(self, as_root, tmp_path, staging):
        """After a pull of root's a user could read neither which packs were seen nor what they had brought."""
        os.mkdir(tmp_path / "users")
        os.chown(tmp_path / "users", ADA, ADA)
        write_whole(str(tmp_path / "users/file"), b"content", str(staging))
        assert (tmp_path / "users/file").stat().st_uid == ADA

    def test_a_reader_never_sees_a_torn_file(self, tmp_path, staging):
        """Three writers rewrite it without pause; each read is one writer's content from end to end."""
        path = tmp_path / "file"
        write_whole(str(path), LETTERS[0], str(staging))
        stop = SPAWN.Event()
        changes, last = 0, LETTERS[0]
        with processes(rewrite, [(str(path), str(staging), letters, stop) for letters in LETTERS]):
            try:
                while changes < 300:
                    content = path.read_bytes()
                    assert content in LETTERS
                    changes += content != last
                    last = content
            finally:
                stop.set()
        assert not list(staging.iterdir())

    def test_a_rename_that_fails_leaves_nothing_behind(self, tmp_path, staging):
        (tmp_path / "directory").mkdir()
        with pytest.raises(
            ProvisionError, match="directory: Is a directory; .*GPUCACHE_DIR"
        ) as caught:
            write_whole(str(tmp_path / "directory"), b"content", str(staging))
        assert caught.value.errno == errno.EISDIR
        assert not list(staging.iterdir())

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
    def test_a_mount_that_cannot_sync_takes_the_file_all_the_same(
        self, number, tmp_path, staging, monkeypatch
    ):
        def refused(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refused)
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert (tmp_path / "file").read_bytes() == b"content"

    @pytest.mark.parametrize("call", ["fsync", "rename"])
    @pytest.mark.parametrize(
        "number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get
    )
    def test_the_old_file_survives_every_failure(
        self, call, number, tmp_path, staging, monkeypatch
    ):
        (tmp_path / "file").write_text("old")

        def fails(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fails)
        with pytest.raises(ProvisionError, match=re.escape(str(tmp_path / "file"))) as caught:
            write_whole(str(tmp_path / "file"), b"new", str(staging))
        assert caught.value.errno == number
        assert (tmp_path / "file").read_text() == "old"
        assert not list(staging.iterdir())

    def test_being_interrupted_leaves_nothing_behind(self, tmp_path, staging, monkeypatch):
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_whole(str(tmp_path / "file"), b"new", str(staging))
        assert not list(staging.iterdir())

    def test_a_missing_staging_directory_is_told(self, tmp_path):
        with pytest.raises(ProvisionError) as caught:
            write_whole(str(tmp_path / "file"), b"new", str(tmp_path / "missing"))
        assert caught.value.errno == errno.ENOENT

    def test_leftovers_go_after_an_hour_and_not_before(self, tmp_path, staging):
        now = time.time()
        for name, age_s in (
            ("publish-old", 3700),
            ("publish-young", 3500),
            ("publish-ahead", -3700),
            ("other", 9999),
        ):
            (staging / name).write_text("left")
            os.utime(staging / name, (now - age_s, now - age_s))
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert sorted(path.name for path in staging.iterdir()) == [
            "other",
            "publish-ahead",
            "publish-young",
        ]

    def test_two_may_sweep_at_once(self, tmp_path, staging, monkeypatch):
        (staging / "publish-old").write_text("left")
        os.utime(staging / "publish-old", (0, 0))
        unlink = os.unlink

        def after_the_other(name, **where):
            unlink(name, **where)
            unlink(name, **where)

        monkeypatch.setattr(os, "unlink", after_the_other)
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert not list(staging.iterdir())

    def test_what_cannot_be_swept_does_not_stop_it(self, tmp_path, staging):
        (staging / "publish-directory").mkdir()
        os.utime(staging / "publish-directory", (0, 0))
        (staging / "publish-nowhere").symlink_to(tmp_path / "nowhere")
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert (tmp_path / "file").read_bytes() == b"content"

    def test_a_link_at_the_path_is_replaced_and_not_followed(self, tmp_path, staging):
        (tmp_path / "target").write_text("untouched")
        (tmp_path / "file").symlink_to(tmp_path / "target")
        write_whole(str(tmp_path / "file"), b"content", str(staging))
        assert (tmp_path / "target").read_text() == "untouched"
        assert not (tmp_path / "file").is_symlink()


LETTERS = [letter * 100_000 for letter in (b"a", b"b", b"c")]


def rewrite(path, staging, content, stop):
    while not stop.is_set():
        write_whole(path, content, staging)


class TestLocked:
    @pytest.fixture
    def lock(self, tmp_path: Path) -> str:
        return str(tmp_path / "a.lock")

    def test_it_excludes_other_processes(self, lock, tmp_path):
        """Four processes count to 100 together, reading and writing as slowly as files do."""
        (tmp_path / "counter").write_text("0")
        with processes(count, [(lock, str(tmp_path / "counter"))] * 4):
            pass
        assert (tmp_path / "counter").read_text() == "100"

    def test_a_disk_that_refuses_to_unlock_does_not_undo_what_was_done(self, lock, monkeypatch):
        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("filelock.FileLock.release", refused)
        with locked(lock, timeout_s=PATIENCE_S):
            pass

    def test_it_excludes_other_threads(self, lock, tmp_path):
        (tmp_path / "counter").write_text("0")
        threads = [
            threading.Thread(target=count, args=(lock, str(tmp_path / "counter"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert (tmp_path / "counter").read_text() == "100"

    def test_whoever_waits_in_vain_is_told_who_holds_it(self, lock):
        with lock_holder(lock) as process:
            with pytest.raises(LockTimeoutError) as caught, locked(lock, timeout_s=0.05):
                pytest.fail("two held it")
        error = caught.value
        assert (error.path, error.timeout_s) == (lock, 0.05)
        since = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        assert re.fullmatch(
            rf"process {process.pid} on {re.escape(paths.host_name())} since {since}", error.holder
        )
        for part in (
            lock,
            "0.05 s",
            str(process.pid),
            paths.host_name(),
            "its death frees the lock",
        ):
            assert part in str(error)

    def test_a_thread_that_waits_in_vain_is_told_too(self, lock):
        with locked(lock, timeout_s=0), pytest.raises(LockTimeoutError) as caught:
            in_thread(lambda: locked(lock, timeout_s=0).__enter__())
        assert f"process {os.getpid()} " in caught.value.holder

    def test_killing_the_holder_frees_it(self, lock):
        with lock_holder(lock) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
            with locked(lock, timeout_s=0):
                pass

    def test_an_exception_frees_it(self, lock):
        with pytest.raises(ZeroDivisionError), locked(lock, timeout_s=0):
            raise ZeroDivisionError
        with locked(lock, timeout_s=0):
            pass

    def test_its_file_stays_and_is_private(self, lock, umask_zero):
        with locked(lock, timeout_s=0):
            inode = os.stat(lock).st_ino
        with locked(lock, timeout_s=0):
            assert os.stat(lock).st_ino == inode
        assert os.stat(lock).st_ino == inode
        assert [mode(Path(path)) for path in (lock, lock + ".holder")] == [0o600, 0o600]

    def test_it_says_who_holds_it(self, lock):
        with locked(lock, timeout_s=0):
            said = json.loads(Path(lock + ".holder").read_text())
        assert said["pid"] == os.getpid()
        assert said["host"] == paths.host_name()

    @pytest.mark.parametrize(
        "said", [None, b"", b"{", b"[]", b"7", b"{}", b'{"pid": 7, "host": "h"}', b"\xff\xfe"]
    )
    def test_a_holder_that_did_not_say_who_it_is_is_no_trouble(self, lock, said):
        """Killed before it wrote, or on a full disk."""
        with lock_holder(lock):
            Path(lock + ".holder").unlink()
            if said is not None:
                Path(lock + ".holder").write_bytes(said)
            with pytest.raises(
                LockTimeoutError, match="held by a process that did not say who it is"
            ):
                with locked(lock, timeout_s=0):
                    pytest.fail("two held it")

    def test_it_holds_where_its_holder_cannot_be_written(self, lock):
        Path(lock + ".holder").mkdir()
        with locked(lock, timeout_s=0), pytest.raises(LockTimeoutError, match="did not say"):
            in_thread(lambda: locked(lock, timeout_s=0).__enter__())

    def test_its_holder_cannot_be_redirected_by_a_link(self, lock, tmp_path):
        (tmp_path / "precious").write_text("precious")
        Path(lock + ".holder").symlink_to(tmp_path / "precious")
        with locked(lock, timeout_s=0):
            assert (tmp_path / "precious").read_text() == "precious"
        Path(lock + ".holder").unlink()
        Path(lock + ".holder").symlink_to(tmp_path / "not-there")
        with locked(lock, timeout_s=0):
            assert not (tmp_path / "not-there").exists()

    def test_a_lock_file_that_cannot_be_made_is_told(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            ProvisionError, match="could not lock .*a.lock: File exists; move that away"
        ):
            with locked(str(tmp_path / "file" / "a.lock"), timeout_s=0):
                pytest.fail("nothing was locked")

    @pytest.mark.parametrize("how", ["unwinds", "vanishes"])
    def test_a_forked_child_that_ends_does_not_free_its_parents_lock(self, lock, how):
        with lock_holder(lock, how), pytest.raises(LockTimeoutError), locked(lock, timeout_s=0):
            pytest.fail("two held it")

    def test_a_forked_child_does_not_keep_its_dead_parents_lock(self, lock):
        with lock_holder(lock, "stays") as process:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_S)
            with locked(lock, timeout_s=0):
                pass


def in_thread(act: Callable[[], object]) -> None:
    """Do it in another thread; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_S)
    if raised:
        raise raised[0]


def count(lock, counter):
    for _ in range(25):
        with locked(lock, timeout_s=PATIENCE_S):
            number = int(Path(counter).read_text())
            Path(counter).write_text(str(number + 1))


class TestSizeOf:
    def test_every_file_of_a_tree_by_its_own_size(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "five").write_bytes(b"12345")
        (tmp_path / "a" / "three").write_bytes(b"123")
        (tmp_path / "a" / "up").symlink_to("..")
        assert size_of(f"{tmp_path}/a") == 5 + 3 + 2
        assert size_of(f"{tmp_path}/a/three") == 3
        assert size_of(f"{tmp_path}/a/up") == 2
        assert size_of(f"{tmp_path}/gone") == 0

    def test_what_cannot_be_read_counts_nothing(self, everyones, as_root):
        (everyones / "closed").mkdir(mode=0o700)
        (everyones / "closed" / "file").write_bytes(b"12345")
        (everyones / "open").write_bytes(b"123")
        with acting_as(ADA):
            assert size_of(str(everyones)) == 3


class TestRemoveTree:
    @pytest.mark.parametrize("call", ["close", "fstat"])
    def test_a_disk_that_refuses_at_the_last_moment_is_no_error(self, tmp_path, monkeypatch, call):
        """Python's `rmtree` lets these two out, whatever it was told about errors."""
        (tmp_path / "a").mkdir()
        made = getattr(os, call)

        def refused(fd: int) -> object:
            made(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refused)
            remove_tree(str(tmp_path / "a"))

    def test_it_goes_with_all_that_is_in_it(self, tmp_path):
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/b/c").touch()
        remove_tree(str(tmp_path / "a"))
        assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_written_through_no_link_and_over_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("another user's")
    (tmp_path / "link").symlink_to(precious)
    os.link(precious, tmp_path / "named")
    for name in ("link", "named"):
        with pytest.raises(FileExistsError):
            write_new(str(tmp_path / name), b"ours")
    with pytest.raises(OSError):
        write_new(str(tmp_path / "link"), b"ours", replace=True)
    assert precious.read_text() == "another user's"


def test_a_writer_whose_clock_is_ahead_takes_away_nothing_that_others_write(tmp_path, monkeypatch):
    """On a mount that nodes share, the clock of the disk is the only one that they have in common."""
    other = tmp_path / f"{files.STAGED}other"
    other.write_text("half of it")
    ahead = time.time() + 10 * files.STALE_S
    monkeypatch.setattr(files.time, "time", lambda: ahead)
    files.write_whole(str(tmp_path / "record"), b"{}", str(tmp_path))
    assert other.exists()
    os.utime(other, (1, 1))
    files.write_whole(str(tmp_path / "record"), b"{}", str(tmp_path))
    assert not other.exists()
