from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes import KEY_HOLDER, PATIENCE_S, SPAWN, running

from gpucache.disk.locks import holder
from gpucache.store import key_lock
from gpucache.store.key_lock import KeyLock, holding, locks_of_this_thread


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "KEY.lock")


def until(condition: Callable[[], object]) -> None:
    """Go on once the condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.01)


def later(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


def acquired(path: str) -> KeyLock:
    """A lock held until the caller's frame is left."""
    lock = KeyLock(path)
    assert lock.try_acquire(sys._getframe(1), "kernel")
    return lock


def is_free(path: str) -> bool:
    with holding(path, "probe") as held:
        return held


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("release\n")
    process.stdin.flush()
    assert process.stdout.readline() == "released\n"


class Waiter(threading.Thread):
    """A thread in `wait`, asleep once this returns."""

    def __init__(self, path: str, stall_s: float = PATIENCE_S) -> None:
        super().__init__(daemon=True)
        self.path, self.stall_s = path, stall_s
        self.freed: bool | None = None
        asleep = len(key_lock._keeper.waiting)
        self.start()
        until(lambda: len(key_lock._keeper.waiting) > asleep)

    def run(self) -> None:
        self.freed = KeyLock(self.path).wait(self.stall_s, later(2 * PATIENCE_S))

    def ended(self) -> bool | None:
        self.join(PATIENCE_S / 2)
        return self.freed


def _contend(path: str, count: Path, rounds: int) -> None:
    """Count up in a file that only one at a time may write."""
    for _ in range(rounds):
        lock = KeyLock(path)
        while not lock.try_acquire(sys._getframe(), "kernel"):
            assert lock.wait(PATIENCE_S, later())
        inside = os.open(f"{path}.inside", os.O_CREAT | os.O_EXCL)  # raises where two are
        os.close(inside)
        count.write_text(str(int(count.read_text()) + 1))
        os.unlink(f"{path}.inside")
        lock.release()


class TestExclusion:
    def test_one_process_at_a_time_holds_a_key(self, path, tmp_path):
        count = tmp_path / "count"
        count.write_text("0")
        workers = [SPAWN.Process(target=_contend, args=(path, count, 25)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert count.read_text() == "100"
        assert not os.path.exists(path)

    def test_one_thread_at_a_time_holds_a_key(self, path, tmp_path):
        count = tmp_path / "count"
        count.write_text("0")
        threads = [
            threading.Thread(target=_contend, args=(path, count, 20), daemon=True)
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert count.read_text() == "240"
        assert not os.path.exists(path)

    def test_another_object_of_the_same_thread_does_not_get_it(self, path):
        lock = acquired(path)
        assert not is_free(path)
        lock.release()
        assert is_free(path)

    def test_keys_are_apart(self, path):
        lock = acquired(path)
        assert is_free(path + "2")
        lock.release()


class TestRelease:
    def test_the_file_goes_with_the_lock(self, path):
        lock = acquired(path)
        assert os.path.exists(path)
        lock.release()
        assert not lock.held
        assert not os.path.exists(path)

    def test_a_second_release_does_not_touch_the_next_holder(self, path):
        first = acquired(path)
        first.release()
        second = acquired(path)
        first.release()
        assert second.held
        assert not is_free(path)
        second.release()

    def test_any_thread_may_release(self, path):
        lock = acquired(path)
        thread = threading.Thread(target=lock.release)
        thread.start()
        thread.join(PATIENCE_S)
        assert is_free(path)

    def test_whoever_locked_the_removed_file_opens_the_new_one(self, path, monkeypatch):
        """Between opening a lock's file and locking it, its holder frees and removes it."""
        first, second, real = acquired(path), KeyLock(path), fcntl.flock

        def flock_after_the_release(fd: int, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", real)
            first.release()
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock_after_the_release)
        assert second.try_acquire(sys._getframe(), "kernel")
        assert os.path.samestat(os.fstat(second._fd), os.stat(path))
        assert not is_free(path)
        second.release()

    def test_a_disk_on_which_the_lock_file_is_never_found_is_an_error_and_no_endless_loop(
        self, path, monkeypatch
    ):
        monkeypatch.setattr(key_lock, "_is_named", lambda *_: False)
        with pytest.raises(OSError, match="what is made there is not found there"):
            KeyLock(path).try_acquire(sys._getframe(), "kernel")

    def test_a_disk_that_refuses_to_close_does_not_reach_the_launch(self, path, monkeypatch):
        lock, close = acquired(path), os.close

        def refused(fd: int) -> None:
            close(fd)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", refused)
            lock.release()
        assert is_free(path)

    def test_it_does_not_remove_the_file_of_whoever_came_after_the_directory_was_removed(
        self, tmp_path
    ):
        place = tmp_path / "locks"
        place.mkdir()
        first = acquired(str(place / "KEY.lock"))
        shutil.rmtree(place)
        place.mkdir()
        second = acquired(str(place / "KEY.lock"))
        first.release()
        assert not is_free(str(place / "KEY.lock"))
        second.release()

    def test_a_file_closed_by_somebody_else_is_no_error(self, path):
        """Daemons close every descriptor; release is called from finalizers and from the keeper."""
        lock = acquired(path)
        os.close(lock._fd)
        lock.release()
        assert not lock.held
        assert is_free(path)

    def test_a_directory_that_is_gone_is_made_again(self, tmp_path):
        """A cleaner of temporary directories sweeps it under live processes."""
        lock = KeyLock(str(tmp_path / "swept" / "KEY.lock"))
        assert lock.try_acquire(sys._getframe(), "kernel")
        assert (tmp_path / "swept").stat().st_mode & 0o777 == 0o700
        lock.release()

    def test_one_that_cannot_be_made_again_is_an_os_error(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="Not a directory"):
            KeyLock(str(tmp_path / "file" / "KEY.lock")).try_acquire(sys._getframe(), "kernel")

    @pytest.mark.root
    def test_one_that_another_user_makes_first_is_not_used(self, as_root, tmp_path, monkeypatch):
        tmp_path.chmod(0o1777)

        def make(path: str) -> bool:
            os.mkdir(path)
            os.chown(path, 65534, 65534)
            return False

        monkeypatch.setattr(key_lock, "make_below_root", make)
        with pytest.raises(PermissionError, match="another user"):
            KeyLock(str(tmp_path / "theirs" / "KEY.lock")).try_acquire(sys._getframe(), "kernel")
        assert os.listdir(tmp_path / "theirs") == []

    def test_a_link_that_anybody_could_have_put_there_is_not_followed(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "link").symlink_to("mine")
        path = str(tmp_path / "link" / "KEY.lock")
        tmp_path.chmod(0o1777)
        with pytest.raises(OSError, match="Not a directory|symbolic link"):
            KeyLock(path).try_acquire(sys._getframe(), "kernel")
        tmp_path.chmod(0o700)
        assert is_free(path)

    def test_swapped_for_a_link_under_the_holder_it_loses_nothing_elsewhere(self, tmp_path):
        (tmp_path / "locks").mkdir()
        lock = KeyLock(str(tmp_path / "locks" / "KEY.lock"))
        assert lock.try_acquire(sys._getframe(), "kernel")
        (tmp_path / "locks").rename(tmp_path / "moved")
        (tmp_path / "elsewhere").mkdir()
        os.link(tmp_path / "moved" / "KEY.lock", tmp_path / "elsewhere" / "KEY.lock")
        (tmp_path / "locks").symlink_to("elsewhere")
        lock.release()
        assert os.listdir(tmp_path / "elsewhere") == ["KEY.lock"]
        assert os.listdir(tmp_path / "moved") == []


ON_CORE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
def compute():
    while True:
        pass
"""


class TestWaiting:
    def test_a_killed_holder_wakes_the_waiter_and_leaves_the_lock(self, path):
        with running(KEY_HOLDER, path) as process:
            assert not is_free(path)
            waiter = Waiter(path)
            process.kill()
            assert waiter.ended() is True
            assert is_free(path)

    def test_a_stopped_holder_is_waited_for_until_the_stall_time(self, path):
        with running(KEY_HOLDER, path) as process:
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert KeyLock(path).wait(1.0, later()) is False
            assert not is_free(path)
            os.kill(process.pid, signal.SIGCONT)
            waiter = Waiter(path)
            release(process)
            assert waiter.ended() is True

    def test_a_holder_that_beats_is_waited_for_beyond_the_stall_time(self, path):
        with running(KEY_HOLDER, path) as process:
            waiter = Waiter(path, stall_s=2.0)
            began, beats = time.monotonic(), set()

            def long_enough() -> bool:
                beats.add(os.stat(path).st_mtime_ns)
                return time.monotonic() - began > 4.0 and len(beats) > 4

            until(long_enough)
            assert waiter.is_alive()
            release(process)
            assert waiter.ended() is True

    def test_a_holder_that_beats_and_gets_no_processor_time_is_not_waited_for(self, path):
        """At nice 19, on one core with two that compute: its beats go on, and its work does not."""
        core = min(os.sched_getaffinity(0))
        with ExitStack() as stack:
            for _ in range(2):
                busy = subprocess.Popen([sys.executable, "-c", ON_CORE + "compute()", str(core)])
                stack.callback(busy.wait)
                stack.callback(busy.kill)
            holding = KEY_HOLDER.replace("argv[1]", "argv[2]").partition("for line")[0]
            code = f"{ON_CORE}os.nice(19)\n{holding}compute()"
            process = stack.enter_context(running(code, str(core), path))
            beats = {os.stat(path).st_mtime_ns}
            waiter = Waiter(path, stall_s=4.0)

            def given_up() -> bool:
                beats.add(os.stat(path).st_mtime_ns)
                return waiter.freed is False

            until(given_up)
            assert process.poll() is None
            assert time.time() - max(beats) / 1e9 < 4.0, "its beats went on"
            assert not is_free(path)

    def test_the_deadline_ends_the_wait_for_a_holder_that_beats(self, path):
        with running(KEY_HOLDER, path):
            began = time.monotonic()
            assert KeyLock(path).wait(PATIENCE_S, began + 0.5) is False
            assert time.monotonic() - began < PATIENCE_S / 2

    def test_a_lock_that_can_be_shared_but_never_taken_is_given_up_at_the_deadline(self, path):
        """A child that C code forked may keep what a waiter held for an instant."""
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            lock, deadline, turns = KeyLock(path), later(0.5), 0
            while not lock.try_acquire(sys._getframe(), "kernel") and lock.wait(
                PATIENCE_S, deadline
            ):
                turns += 1
                assert time.monotonic() < deadline + PATIENCE_S / 2
            assert not lock.held
            assert turns > 0

    def test_a_lock_that_is_gone_is_free(self, path):
        assert KeyLock(path).wait(PATIENCE_S, later()) is True

    @pytest.mark.parametrize("how", ["released", "killed"])
    def test_all_waiters_wake(self, path, how):
        with running(KEY_HOLDER, path) as process:
            waiters = [Waiter(path) for _ in range(10)]
            if how == "killed":
                process.kill()
            else:
                release(process)
            assert [waiter.ended() for waiter in waiters] == [True] * 10
        assert not key_lock._keeper.waiting

    def test_the_helper_of_a_wait_in_vain_ends_when_the_lock_is_freed(self, path):
        with running(KEY_HOLDER, path) as process:
            assert KeyLock(path).wait(PATIENCE_S, later(0.1)) is False
            assert key_lock._keeper.waiting
            release(process)
            until(lambda: not key_lock._keeper.waiting)
            until(lambda: "gpucache-wait" not in {thread.name for thread in threading.enumerate()})


def compile_that_raises(path: str) -> None:
    lock = KeyLock(path)
    assert lock.try_acquire(sys._getframe(), "kernel")
    raise RuntimeError("ptxas", lock)  # which keeps the lock alive as Triton's manager would


def compile_that_leaves_its_lock(path: str) -> KeyLock:
    lock = KeyLock(path)
    assert lock.try_acquire(sys._getframe(), "kernel")
    return lock


class TestOver:
    """A compile is over when its frame has left the stack, whatever is still alive."""

    def test_a_compile_that_raised_frees_the_lock_although_its_exception_lives(self, path):
        with pytest.raises(RuntimeError) as kept:
            compile_that_raises(path)
        lock = kept.value.args[1]
        until(lambda: is_free(path))
        assert not lock.held
        assert kept.value.__traceback__ is not None

    def test_a_waiter_wakes_when_a_compile_raised(self, path):
        entered, go, errors = threading.Event(), threading.Event(), []

        def compile_slowly() -> None:
            lock = KeyLock(path)
            assert lock.try_acquire(sys._getframe(), "kernel")
            entered.set()
            go.wait(PATIENCE_S)
            raise RuntimeError(lock)

        def work() -> None:
            try:
                compile_slowly()
            except RuntimeError as error:
                errors.append(error)
            done.wait(PATIENCE_S)

        done = threading.Event()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert entered.wait(PATIENCE_S)
        waiter = Waiter(path)
        go.set()
        assert waiter.ended() is True
        assert errors
        done.set()
        thread.join(PATIENCE_S)

    def test_the_lock_is_kept_while_the_frame_that_began_is_below_others(self, path):
        lock = acquired(path)

        def deeper(levels: int) -> None:
            if levels:
                return deeper(levels - 1)
            seen = {os.stat(path).st_mtime_ns}
            until(lambda: seen.add(os.stat(path).st_mtime_ns) or len(seen) > 2)
            return None

        deeper(50)
        assert lock.held
        lock.release()

    def test_this_threads_stale_locks_are_freed_and_its_live_ones_told(self, path):
        outer = acquired(path)
        stale = compile_that_leaves_its_lock(path + "2")

        def nested() -> None:
            inner = acquired(path + "3")
            assert set(locks_of_this_thread()) == {outer, inner}
            inner.release()

        nested()
        assert locks_of_this_thread() == [outer]
        assert not stale.held
        assert is_free(path + "2")
        outer.release()
        assert locks_of_this_thread() == []

    def test_a_thread_does_not_see_the_locks_of_others(self, path):
        lock, found = acquired(path), []
        thread = threading.Thread(target=lambda: found.append(locks_of_this_thread()))
        thread.start()
        thread.join(PATIENCE_S)
        assert found == [[]]
        assert lock.held
        lock.release()

    def test_the_lock_of_a_thread_that_ended_is_freed(self, path):
        left = []
        thread = threading.Thread(target=lambda: left.append(compile_that_leaves_its_lock(path)))
        thread.start()
        thread.join(PATIENCE_S)
        until(lambda: is_free(path))
        assert not left[0].held

    def test_a_frame_at_the_same_address_with_other_code_is_not_the_compile(self, path):
        lock = compile_that_leaves_its_lock(path)
        lock._frame = id(sys._getframe())
        assert locks_of_this_thread() == []
        assert not lock.held

    def test_a_later_call_at_the_same_address_keeps_the_lock_only_until_it_returns(self, path):
        def call(lock: KeyLock | None) -> KeyLock:
            if lock is None:
                lock = KeyLock(path)
                assert lock.try_acquire(sys._getframe(), "kernel")
                return lock
            lock._frame = id(sys._getframe())
            assert locks_of_this_thread() == [lock]
            return lock

        lock = call(call(None))
        until(lambda: is_free(path))
        assert not lock.held


def beating() -> bool:
    return "gpucache-beat" in {thread.name for thread in threading.enumerate()}


class TestKeeper:
    def test_it_ends_when_nothing_is_held_and_starts_again(self, path):
        for _ in range(2):
            first, second = acquired(path), acquired(path + "2")
            assert beating()
            first.release()
            second.release()
            until(lambda: not beating())

    def test_a_lock_taken_after_it_looked_at_the_frames_is_not_abandoned(self, path, monkeypatch):
        looked, go, again, real = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
            sys._current_frames,
        )

        def slowly() -> dict[int, object]:
            if looked.is_set():
                again.set()
                return real()
            frames = real()
            looked.set()
            go.wait(PATIENCE_S)
            return frames

        def compile_kernel() -> None:
            late = acquired(path + "2")
            go.set()
            assert again.wait(PATIENCE_S)  # the round that had looked before is over
            assert late.held
            late.release()

        monkeypatch.setattr(sys, "_current_frames", slowly)
        early = acquired(path)
        assert looked.wait(PATIENCE_S)
        compile_kernel()
        assert early.held
        early.release()

    @pytest.fixture
    def no_thread(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
        """None can be started."""
        until(lambda: not beating())

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            yield patch

    def test_without_a_thread_a_lock_that_is_surely_released_is_held(self, path, no_thread):
        with holding(path, "its removal") as held:
            assert held
            assert not is_free(path)
        assert not os.path.exists(path)

    def test_without_a_thread_a_waiter_looks_again_and_again(self, path, no_thread):
        with running(KEY_HOLDER, path) as process:
            assert KeyLock(path).wait(30.0, later(0.2)) is False
            release(process)
            assert KeyLock(path).wait(1.0, later()) is True

    def test_without_a_thread_a_compile_is_not_locked_since_it_may_raise(self, path, no_thread):
        lock = KeyLock(path)
        with pytest.raises(OSError, match="can't start new thread"):
            lock.try_acquire(sys._getframe(), "kernel")
        assert not lock.held
        no_thread.undo()
        lock = acquired(path)
        assert beating()
        lock.release()


FORKING = """
import ctypes, os, sys, threading
from gpucache.store.key_lock import KeyLock, locks_of_this_thread
path, how = sys.argv[1:]
lock = KeyLock(path)
assert lock.try_acquire(sys._getframe(), "kernel")
child = ctypes.PyDLL(None).fork() if how == "C" else os.fork()
if child == 0:
    if how == "C":
        os.read(0, 1)
        os._exit(0)
    assert not lock.held
    assert locks_of_this_thread() == []
    assert not KeyLock(path).try_acquire(sys._getframe(), "kernel")
    lock.release()
    if how == "exits":
        sys.exit()
    if how == "compiles":
        other = KeyLock(path + "2")
        assert other.try_acquire(sys._getframe(), "kernel")
        seen = set()
        while len(seen) < 3:  # there is a keeper in the child, too
            seen.add(os.stat(path + "2").st_mtime_ns)
            threading.Event().wait(0.01)
        other.release()
        sys.exit()
    print("held", flush=True)
    os.read(0, 1)
    os._exit(0)
if how in ("exits", "compiles"):
    assert os.waitpid(child, 0)[1] == 0
if how != "stays":
    print("held", flush=True)
for line in sys.stdin:
    lock.release()
    print("released", flush=True)
"""

FORKED_WAITER = """
import ctypes, os, sys, threading, time
from gpucache.store import key_lock
lock = key_lock.KeyLock(sys.argv[1])
waiting = threading.Thread(target=lock.wait, args=(60.0, time.monotonic() + 60))
waiting.start()
while not key_lock._keeper.waiting:
    threading.Event().wait(0.01)
child = ctypes.PyDLL(None).fork() if sys.argv[2] == "C" else os.fork()
if child == 0:
    print("held", flush=True)
    os.read(0, 1)
    os._exit(0)
waiting.join()
print("woken", flush=True)
os.read(0, 1)
"""


class TestFork:
    @pytest.mark.parametrize("how", ["exits", "compiles"])
    def test_a_child_neither_holds_nor_frees_its_parents_lock(self, path, how):
        with running(FORKING, path, how) as process:
            assert not is_free(path)
            release(process)
            assert is_free(path)

    def test_a_child_that_lives_on_does_not_keep_a_killed_parents_lock(self, path):
        with running(FORKING, path, "stays") as process:
            waiter = Waiter(path)
            process.kill()
            assert waiter.ended() is True
            assert is_free(path)

    def test_a_child_that_c_code_forked_does_not_keep_what_its_parent_released(self, path):
        with running(FORKING, path, "C") as process:
            waiter = Waiter(path)
            release(process)
            assert waiter.ended() is True
            assert is_free(path)

    @pytest.mark.parametrize("how", ["Python", "C"])
    def test_the_child_of_a_waiter_does_not_keep_what_the_waiter_shared(self, path, how):
        with running(KEY_HOLDER, path) as process, running(FORKED_WAITER, path, how) as waiter:
            process.kill()
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == "woken\n"
            until(lambda: is_free(path))


class TestHolder:
    def test_it_is_named_with_its_kernel(self, path):
        with running(KEY_HOLDER, path) as process:
            said = json.loads(Path(path).read_text())
            host = os.uname().nodename
            assert (
                holder(path)
                == f"process {process.pid} on {host} since {said['since']} for add_kernel"
            )

    def test_the_next_holder_replaces_what_a_killed_one_with_a_longer_name_wrote(self, path):
        Path(path).write_text(
            json.dumps({"pid": 1, "host": "h" * 300, "since": "s", "what": "w" * 300})
        )
        lock = acquired(path)
        assert holder(path).startswith(f"process {os.getpid()} on ")
        lock.release()

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b'{"pid": 1}']
    )
    def test_garbage_is_a_process_that_did_not_say(self, path, text):
        Path(path).write_bytes(text)
        assert holder(path) == "a process that did not say who it is"

    def test_no_file_is_a_process_that_did_not_say(self, path):
        assert holder(path) == "a process that did not say who it is"


def test_a_file_that_was_given_the_name_of_a_lock_is_not_written_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("another user's")
    before = precious.stat()
    path = tmp_path / "KEY.lock"
    os.link(precious, path)
    with key_lock.holding(str(path), "a test") as held:
        assert held
        assert not os.path.samefile(path, precious)
    after = precious.stat()
    assert precious.read_text() == "another user's"
    assert after.st_mtime_ns == before.st_mtime_ns
    assert not path.exists()
