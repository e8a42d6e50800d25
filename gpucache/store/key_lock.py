"""One compile per key on a node: a lock that dies with its holder, beats while it works, and cannot hang a waiter.

The holder has the key's file under ``flock``, so that its death frees it, and a thread that touches the file every half
second *while the frame that began the compile is on its thread's stack*: a compile that raised frees the lock although
its exception, and with it the manager object, is kept alive. A waiter watches the file's modification time and goes on
alone when it stands still. Locks of another node are not seen: the files must lie on a local file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

from gpucache.disk.door import SAFELY, has_name
from gpucache.disk.files import make_below_root
from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import is_free, let_go, signature
from gpucache.disk.sharing import open_or_new
from gpucache.forks import after_fork
from gpucache.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from gpucache.disk.within import Straight

_BEAT_S = 0.5
_LOOK_S = 0.05
_TRIES = 100
"""So often in a row another holder may remove the lock file under whoever opens it; oftener, the disk shows no file."""


class KeyLock:
    """The lock of one key, as one thread asks for it. Each object opens the file for itself, and is used once."""

    def __init__(self, path: str, disk: Straight | None = None) -> None:
        """``path`` is that of the lock's file; ``disk`` is for whoever may follow no link on the way to the file."""
        self.path = path
        self._disk = disk
        self._fd: int | None = None
        self._here = -1
        """The directory of the file, open while the lock is held."""
        self._thread = 0
        self._frame = 0
        self._code: CodeType | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def try_acquire(self, frame: FrameType | None, what: str, device: str | None = None) -> bool:
        """Take the lock if it is free. It is held until `release`, or until ``frame`` has left its thread's stack.

        ``frame`` is that of a compile, which may end by an exception that nobody tells us of; whoever surely releases
        the lock, as `holding` does, gives None. ``what`` is what the lock is held for, for those who wait. ``device``
        is of a compile: the label of the device directory that it is for (`gpucache top` shows it).

        Raises:
            OSError: the file cannot be made or locked, or no thread can be started that watches the frame.
        """
        opened = _open_locked(self.path, self._disk)
        if opened is None:
            return False
        self._fd, self._here = opened
        self._thread = threading.get_ident()
        if frame is not None:
            self._frame = id(frame)
            self._code = frame.f_code
        try:
            _keeper.add(self)
        except OSError:
            # Without a frame the lock is freed all the same, and soon: those who wait will not miss the beat.
            if frame is not None:
                self.release()
                raise
        _sign(self._fd, what, device)
        return True

    def release(self) -> None:
        """Free the lock and remove its file. May be called twice, and from any thread."""
        with _keeper.mutex:
            fd, self._fd = self._fd, None
            if fd is None:
                return
            _keeper.locks.discard(self)
            with suppress(OSError):  # on a read-only disk it stays
                # Only our own: a cleaner may have removed it, so that the file of another holder is there. And while it
                # is held: whoever has opened it before gets the lock next, compares, and opens anew.
                name = os.path.basename(self.path)
                if has_name(fd, name, self._here):
                    os.unlink(name, dir_fd=self._here)
            let_go(fd)
            _close_both(None, self._here)

    def wait(self, stall_s: float, deadline: float) -> bool:
        """Sleep until the lock is freed; False once the holder shows no life for ``stall_s``, or at the deadline.

        It shows none if it has not beaten, or was given no processor time that is worth the name (`HolderLife`).

        Wakes within milliseconds: a helper thread sleeps in ``flock(LOCK_SH)``, which wakes all waiters at once.
        ``deadline`` is on the clock of `time.monotonic`. Where no thread can be started, the lock is looked at again
        and again.
        """
        if time.monotonic() > deadline:
            # even if it looks free: a lock that can be shared and never taken would be tried for ever
            return False
        from gpucache.store.holder_life import HolderLife  # who need not wait, does without

        freed = threading.Event()
        arguments = (self.path, freed)
        helper = threading.Thread(
            target=_wait_until_free, args=arguments, name="gpucache-wait", daemon=True
        )
        is_freed = freed.wait
        try:
            start(helper)
        except OSError:
            is_freed = partial(_is_found_free, self.path)
        life = HolderLife(self.path)
        seen = _last_beat(self.path)
        since = time.monotonic()
        while not is_freed(_BEAT_S):
            beat = _last_beat(self.path)
            now = time.monotonic()
            if beat != seen:
                seen, since = beat, now
            is_dead = now - since > stall_s or life.starves(now, stall_s)
            if is_dead or now > deadline:
                return False  # the helper ends, and closes its file, when the lock is freed at last
        return True

    def beat(self, frames: dict[int, FrameType]) -> None:
        """Touch the file while the compile goes on; free the lock once the compile is over. Only the keeper calls this.

        ``frames`` are the tops of all threads' stacks, by thread.
        """
        if self._is_over(frames.get(self._thread)):
            self.release()
            return
        with _keeper.mutex:
            if self._fd is not None:
                with suppress(OSError):  # waiters then go on alone, which is safe
                    os.utime(self._fd)

    def _is_over(self, frame: FrameType | None) -> bool:
        """Whether the compile's frame is not on the stack whose top is ``frame``, None for a thread that ended."""
        if self._code is None:
            return False  # held until it is released
        while frame is not None:
            # The code as well: another frame may have the address that the compile's had.
            if id(frame) == self._frame and frame.f_code is self._code:
                return False
            frame = frame.f_back
        return True


@contextmanager
def holding(path: str, what: str, disk: Straight | None = None) -> Iterator[bool]:
    """Hold the lock of a key, if it is free, for the length of a ``with`` block, which is told whether it is held.

    ``path`` is the lock's file, and ``what`` is what the lock is held for, for those who wait. ``disk`` is as for
    `KeyLock`.

    Raises:
        OSError: the file cannot be made or locked, or no thread started to beat for it; the block is not entered.
    """
    lock = KeyLock(path, disk)
    held = lock.try_acquire(None, what)
    try:
        yield held
    finally:
        lock.release()


def locks_of_this_thread() -> list[KeyLock]:
    """The locks that are held on this thread's stack. Those of compiles that are over are freed first."""
    this = threading.get_ident()
    mine = []
    for lock in _keeper.locks.copy():
        if lock._thread == this:
            mine.append(lock)
    # not our own: a frame that refers to itself would keep the compile's alive
    frame = sys._getframe(1)
    for lock in mine:
        if lock._is_over(frame):
            lock.release()
    return [lock for lock in mine if lock.held]


def _open_locked(path: str, disk: Straight | None) -> tuple[int, int] | None:
    """Open and lock a file, which is made if it is not there; None while another holder has the lock.

    Returns the descriptors of the file and of its directory.

    Raises:
        OSError: the file cannot be made or locked, or is not found by its path although it is open.
    """
    for _ in range(_TRIES):
        here = _open_or_make(os.path.dirname(path), disk)
        fd = None
        try:
            fd = open_or_new(os.path.basename(path), os.O_RDWR, here)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink > 1:
                # Another user's file, perhaps, that was given this name so that root writes into it.
                os.unlink(os.path.basename(path), dir_fd=here)
            elif _is_named(fd, path, disk):
                return fd, here
            # Its last holder removed the file while we opened it, or a cleaner its directory: another is there now.
        except BlockingIOError:
            _close_both(fd, here)
            return None
        except BaseException as error:
            is_swept = isinstance(error, FileNotFoundError) and os.fstat(here).st_nlink == 0
            _close_both(fd, here)
            if is_swept:
                continue
            raise
        _close_both(fd, here)
    raise OSError(errno.ESTALE, "what is made there is not found there", path)


def _close_both(fd: int | None, here: int) -> None:
    """Close the descriptors of a lock file and of its directory; both are closed also where a disk answers EIO."""
    for one in (fd, here):
        if one is not None:
            with suppress(OSError):
                os.close(one)


def _open_or_make(directory: str, disk: Straight | None) -> int:
    """Open the directory of a lock, which is made if it is not there.

    A cleaner may sweep the directory under live processes. Then each makes it again, and they meet there as before.

    Raises:
        OSError: the directory cannot be made, or is another user's.
    """
    try:
        return open_lock_directory(directory, disk)
    except FileNotFoundError:
        if disk is not None:
            raise
        make_below_root(directory)
        return open_lock_directory(directory)


def _sign(fd: int, what: str, device: str | None) -> None:
    """Write for those who wait which process holds the lock, and what for."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, signature(what, device), 0)
    except OSError:
        return  # on a full disk the lock holds all the same


def _is_named(fd: int, path: str, disk: Straight | None) -> bool:
    """Whether a path still leads to the file that is open."""
    try:
        named = os.stat(path) if disk is None else disk.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _last_beat(path: str) -> int | None:
    """When the holder of a lock last touched the lock's file (ns since the epoch); None where the file is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _wait_until_free(path: str, freed: threading.Event) -> None:
    """Set ``freed`` once nobody holds the lock; for a thread of its own, which sleeps in the kernel."""
    try:
        fd = os.open(path, os.O_RDWR | SAFELY)
        _keeper.waiting.add(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            _keeper.waiting.discard(fd)
            let_go(fd)
    except OSError:
        pass  # the file is gone, and so is its holder
    freed.set()


def _is_found_free(path: str, timeout_s: float) -> bool:
    """Look at a lock now and then until it is free, or gone, or the time is over; tell whether it is free."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        time.sleep(_LOOK_S)
        if is_free(path) or not os.path.lexists(path):
            return True
    return False


class _Keeper:
    """The locks that this process holds, and the thread that beats for them."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.locks: set[KeyLock] = set()
        self.waiting: set[int] = set()
        """The descriptors of threads that wait for a lock: a forked child closes them."""
        self._thread: threading.Thread | None = None

    def add(self, lock: KeyLock) -> None:
        """Beat for a lock from now on, until it is released.

        Raises:
            OSError: no thread can be started.
        """
        with self.mutex:
            self.locks.add(lock)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="gpucache-beat", daemon=True)
                start(thread)
                self._thread = thread

    def _run(self) -> None:
        """Beat for all locks every half second; end once there is none."""
        pause = threading.Event()
        while True:
            pause.wait(_BEAT_S)
            # before the frames: one taken after them would look abandoned
            locks = self.locks.copy()
            frames = sys._current_frames()
            for lock in locks:
                lock.beat(frames)
            # or this thread would keep every frame, and what it holds, alive until the next beat
            del frames
            with self.mutex:
                if not self.locks:
                    self._thread = None
                    return


_keeper = _Keeper()


@after_fork
def _after_fork_in_child() -> None:
    """Close the parent's lock files in the child, which neither holds nor frees them: LOCK_UN would free them."""
    global _keeper
    for lock in tuple(_keeper.locks):  # to close one may collect garbage, which releases another
        if lock._fd is not None:
            _close_both(lock._fd, lock._here)
            lock._fd = None
    for fd in tuple(_keeper.waiting):
        with suppress(OSError):
            os.close(fd)
    _keeper = _Keeper()


def remove_if_free(path: str, disk: Straight | None = None) -> bool:
    """Remove a lock file unless the lock is held; return whether the file was removed. ``disk`` is as for `KeyLock`."""
    try:
        with holding(path, "its removal", disk) as held:
            pass  # its release removes the file
    except OSError:
        return False
    return held and not os.path.lexists(path)
