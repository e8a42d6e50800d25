"""When the store is over `GPUCACHE_MAX_SIZE`, and the eviction that brings it back under.

`recency` decides who goes first, `eviction` removes an entry, `size` keeps and counts the size of the store.

Counted and evicted are entries of the store, with their views, and before them what is in the quarantine; what stock
Triton and torch left is never touched here. A put adds its size to the file, one small write; over the limit, one
process at a time evicts down to nine tenths of the limit, in turns of 200 ms after its own kernel was returned. The
size is counted anew after a prune, and once a day, by a thread that works for 20 ms and then rests for 80.

The file is right but for views that were made while the store was counted, and for what a process could not write
before it ended, because another one was writing at that moment. Bytes are those of the files' contents, with about
1 KiB for each view that is linked, and all bytes of one that is a copy; a user's own links are not counted.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from gpucache.configuration import for_all
from gpucache.disk.files import make_below_root
from gpucache.disk.fitness import statvfs
from gpucache.disk.locks import let_go
from gpucache.environment import MAX_SIZE
from gpucache.forks import after_fork, closed_in_child
from gpucache.kernels.group import GROUP_BYTES
from gpucache.log import INFO, tell_in_job
from gpucache.store.manifest import MANIFEST, RECIPE, Manifest, entry_path
from gpucache.store.recency import LEAST_GRACE_S, STAMP_S, is_recent, oldest_first
from gpucache.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.disk.lock_place import LockPlace
    from gpucache.store.counting import LastUse
    from gpucache.store.size import Total
    from gpucache.store.stats import Stats

_SHARE, _MOST = 0.1, 50 * 2**30
_LOW = 0.9
_DOUBTFUL = 1.5
_TURN_S = 0.2
_PAUSE_S = 30.0
_OTHERS_S = 60.0
"""How often a process asks whether TorchInductor's files and those of other JIT compilers are to be looked at."""
_WORK_S, _REST_S = 0.02, 0.08


def max_size_bytes(root: str, environ: Mapping[str, str]) -> int:
    """The bytes that the store may take, by the root's own settings, else by `GPUCACHE_MAX_SIZE`; 0 is no limit.

    Raises:
        OSError: the file system does not answer.
    """
    allowed = MAX_SIZE.read_or_default(for_all(root, environ))
    if allowed is not None:
        return allowed
    disk = statvfs(root)
    if disk is None or not disk.f_blocks:
        return _MOST  # the size of the file system is unknown
    disk_bytes = disk.f_blocks * disk.f_frsize
    return min(int(disk_bytes * _SHARE), _MOST)


def own_max_size_bytes(environ: Mapping[str, str], limit_bytes: int) -> int:
    """The lower limit up to which this process alone adds to a store of this limit; 0 where it asks for none."""
    own = MAX_SIZE.read_or_default(environ)
    if own and (own < limit_bytes or not limit_bytes):
        return own
    return 0


class Limit:
    """The limit of one root, as one process keeps it. Any thread may call it; only the disk is shared with others."""

    def __init__(
        self,
        root: str,
        locks: LockPlace,
        limit_bytes: int,
        grace_s: float = 3 * STAMP_S,
        inductor_bytes: int = 0,
        jit_bytes: int = 0,
        own_bytes: int = 0,
        stats: Stats | None = None,
    ) -> None:
        self.root = root
        self.locks = locks
        self.limit_bytes = limit_bytes
        self.inductor_bytes = inductor_bytes
        """What TorchInductor's files may take; 0 is no limit, as of ``limit_bytes``."""
        self.jit_bytes = jit_bytes
        """What other JIT caches in the root may take together; 0 is no limit."""
        self.own_bytes = own_bytes
        """Up to which size of the store this process adds to it (`own_max_size_bytes`); 0 where that is as for all."""
        self.stats = stats
        """Where evictions are counted; None where they are not."""
        self.grace_s = max(grace_s, LEAST_GRACE_S)
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        # a manager object may go, and call us, while we are at work
        self._mutex = threading.RLock()
        self._pending = 0
        self._due = False
        self._not_before = 0.0
        self._others_at = 0.0
        self._has_counted = False
        self._thread: threading.Thread | None = None
        self._oldest: list[LastUse] = []

    def may_add(self) -> bool:
        """Whether this process may add to the store: not above a lower limit that it has asked for, told once in a job.

        Nothing is evicted for that: what others keep is bounded by the limit of the root.
        """
        if not self.own_bytes:
            return True
        from gpucache.store.size import total_bytes  # few processes ask for one

        taken = total_bytes(self.root)
        if taken is None or taken < self.own_bytes:
            return True
        said = (
            "not added to the store, which has %d bytes: this process's %s is %d, and the root's %d"
        )
        tell_in_job(INFO, said, taken, MAX_SIZE.name, self.own_bytes, self.limit_bytes)
        return False

    def published(self, manifest: Manifest) -> None:
        """Count what was put into the store, with one view. The eviction it may call for is left to `enforce`.

        Never raises for what the disk says.
        """
        size = len(manifest.encoded()) + GROUP_BYTES
        for published in manifest.files.values():
            size += published.size_bytes
        if manifest.recipe is not None and manifest.key is not None:
            entry = entry_path(self.root, manifest.facts.store_key(manifest.key))
            with suppress(OSError):
                size += os.lstat(f"{entry}/{RECIPE}").st_size
        self._put(size)

    def adopted(self, files: Iterable[str], recipe: bytes | None) -> None:
        """Count the files of an entry that stock Triton had made, and the recipe that it got, as `published`."""
        size = 2 * GROUP_BYTES + len(recipe or b"")
        with suppress(OSError):
            for path in files:
                size += os.stat(path).st_size
            self._put(size)

    def brought(self, size_bytes: int) -> None:
        """Count what an entry takes in the store that was copied from elsewhere, without a view, as `published`."""
        self._put(size_bytes)

    def viewed(self) -> None:
        """Count one more view, as `published`."""
        self._put(GROUP_BYTES)

    def copied(self, view: str, manifest: Manifest) -> None:
        """Count, as `published`, the files of a view that are no links to those of the store."""
        with suppress(OSError):
            if os.lstat(f"{view}/{MANIFEST}").st_nlink == 1:
                self._put(sum(published.size_bytes for published in manifest.files.values()))

    def refused(self) -> None:
        """Let a turn come although nothing was put, since the disk takes no more.

        What is over the limit is to go all the same, or nothing could ever be put again.
        """
        self._put(0)

    def enforce(self) -> None:
        """Begin a turn of eviction in a thread if a turn is due. The thread ends before the interpreter does."""
        with self._mutex:
            running = self._thread is not None and self._thread.is_alive()
            pausing = time.monotonic() < self._not_before
            if not self._due or running or pausing:
                return
            self._due = False
            self._thread = threading.Thread(target=self.turn, name="gpucache-limit")
            with suppress(OSError):  # then a later turn
                start(self._thread)

    def turn(self) -> None:
        """Evict for 200 ms at most, unless another process does. Never raises for what the disk says.

        The turn in which the store is counted anew takes as long as that does: some 26 us an entry, a fifth of the
        time, so that the main thread keeps its speed. At the end of the process what is left is counted without rests.
        """
        from gpucache.disk.lock_place import open_lock_directory

        with suppress(OSError):
            locks = self.locks.directory()
            make_below_root(locks)  # a cleaner may have swept it
            fd = open_lock_directory(locks)
            closed_in_child.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._enforce_now(os.path.realpath(locks))
                self._bound_others()
            finally:
                closed_in_child.discard(fd)
                let_go(fd)

    def _put(self, size: int) -> None:
        """Add to the size in the file; a turn is due if the store is over its limit then, or is to be counted.

        Or if it is time to look at TorchInductor's files, or at other JIT caches.
        """
        if self._bounds_others() and time.monotonic() >= self._others_at:
            self._due = True
        if not self.limit_bytes:
            return
        with suppress(OSError):
            total = self._add(size)
            if total is None:
                return  # the next put writes this one's bytes as well
            if total.stale or self._is_over(total):
                self._due = True

    def _add(self, change: int, draining: bool | None = None) -> Total | None:
        """Add to the size in the file, with what could not be added before; return the total.

        None while another process writes the file: then the next call adds this change as well.
        """
        from gpucache.store.size import updated  # a process that only hits adds nothing

        with self._mutex:
            self._pending += change
            total = updated(self.root, self._pending, draining=draining)
            if total is not None:
                self._pending = 0
            return total

    def _enforce_now(self, locks: str) -> None:
        """Count the store if that is due, and then evict if the store is over the limit."""
        if not self.limit_bytes:
            return
        total = self._add(0)
        if total is not None and (total.stale or self._is_doubtful(total)):
            total = self._count(locks)
        if total is None or not self._is_over(total):
            return
        aim = int(self.limit_bytes * _LOW)
        deadline = time.monotonic() + _TURN_S
        left = self._discard_down_to(aim, total.size_bytes, deadline)
        if left <= self.limit_bytes and not total.draining:
            return  # no entry has to go for what was damaged
        left = self._evict_down_to(aim, left, deadline, locks)
        self._add(0, draining=left > aim)
        if self.stats is not None:
            self.stats.flush()

    def _is_doubtful(self, total: Total) -> bool:
        """Whether a total is far above the limit and this process has not counted yet.

        It may be damaged, and would have all go. Where the limit was lowered, each process counts once more.
        """
        return not self._has_counted and total.size_bytes > _DOUBTFUL * self.limit_bytes

    def _count(self, locks: str) -> Total | None:
        """Count the store anew, without what killed removals and directories that are gone have left."""
        # Most processes count nothing.
        from gpucache.store.counting import counted
        from gpucache.store.foreign import forget_gone
        from gpucache.store.leftovers import complete
        from gpucache.store.size import set_total

        root, rest = os.path.realpath(self.root), _resting()
        forget_gone(root)
        complete(root, locks, rest)
        self._has_counted = True
        return set_total(self.root, counted(self.root, rest))

    def _bounds_others(self) -> bool:
        return bool(self.inductor_bytes or self.jit_bytes)

    def _bound_others(self) -> None:
        """Bound TorchInductor's files and other JIT caches, if they have limits.

        Of each, no process looks that comes within an hour of another one.
        """
        if not self._bounds_others() or time.monotonic() < self._others_at:
            return
        self._others_at = time.monotonic() + _OTHERS_S
        root = os.path.realpath(self.root)
        if self.inductor_bytes:
            from gpucache.store import inductor_limit  # most processes have no such limit

            inductor_limit.bound(root, self.inductor_bytes, self.grace_s, _resting())
        if self.jit_bytes:
            from gpucache.store import jit_limit  # nor this one

            jit_limit.bound(root, self.jit_bytes, self.grace_s, _resting())

    def _is_over(self, total: Total) -> bool:
        return total.draining or total.size_bytes > self.limit_bytes

    def _discard_down_to(self, aim: int, size: int, deadline: float) -> int:
        """Empty the quarantine until the deadline, or until ``size`` has shrunk to ``aim``; return the bytes then."""
        # Most processes never evict anything.
        from gpucache.disk import mounts
        from gpucache.disk.within import Straight
        from gpucache.store.eviction import discard
        from gpucache.store.quarantine import in_quarantine

        root = os.path.realpath(self.root)
        damaged = in_quarantine(root)
        if not damaged:
            return size

        mounted = mounts.below([root])
        with Straight() as disk:
            for one in damaged:
                if size <= aim or time.monotonic() > deadline:
                    break
                freed = discard(one, mounted, disk)
                size -= freed
                self._add(-freed)
        return size

    def _evict_down_to(self, aim: int, size: int, deadline: float, locks: str) -> int:
        """Evict until the deadline, or until the store has shrunk from ``size`` bytes to ``aim``; return its bytes."""
        if size <= aim:
            return size
        from gpucache.disk.within import Straight
        from gpucache.store.eviction import Places, evict

        root = os.path.realpath(self.root)
        places = Places.of(root)
        with Straight() as disk:
            for entry in self._oldest_first(root):
                now = time.time()
                if is_recent(entry.used, now, self.grace_s):
                    break  # and so is all that comes after it
                freed = evict(entry, places, locks, self.grace_s, disk)
                size -= freed
                self._add(-freed, draining=True)
                self._count_evicted(freed)
                # Looked at last: a turn evicts one entry at least, however long the listing took.
                if size <= aim:
                    self._oldest.clear()
                    return size
                if time.monotonic() > deadline:
                    return size
        # Nothing is left that may go. After the pause it may be another entry's turn, so that all are listed anew.
        self._oldest.clear()
        pause_s = min(self.grace_s, _PAUSE_S)
        self._not_before = time.monotonic() + pause_s
        return size

    def _count_evicted(self, freed: int) -> None:
        """Count an entry that has gone, in memory: a turn writes its counters at its end."""
        if freed and self.stats is not None:
            self.stats.add("evicted")
            self.stats.add("evicted_bytes", freed)

    def _oldest_first(self, root: str) -> Iterator[LastUse]:
        """Yield stored entries, least recently used first: what an earlier turn has left, and then all, listed anew."""
        from gpucache.store.counting import last_uses

        yield from self._take_oldest()
        now = time.time()
        self._oldest = oldest_first(last_uses(root), now)
        self._oldest.reverse()  # the next one is taken from the end
        yield from self._take_oldest()

    def _take_oldest(self) -> Iterator[LastUse]:
        """Yield the entries that are listed, and strike each from the list: a turn may end between two of them."""
        while self._oldest:
            yield self._oldest.pop()


def _resting() -> Callable[[], None]:
    """Make the function that a count calls between its parts, and that rests now and then.

    In a rest the main thread has the interpreter alone.

    Without rests the main thread has half of its speed until the count ends. There are none on the main thread
    itself, and none once that has ended: the interpreter then waits for the count.
    """
    main = threading.main_thread()
    resting = threading.current_thread() is not main
    began = time.monotonic()

    def rest() -> None:
        nonlocal began, resting
        worked_s = time.monotonic() - began
        if not resting or worked_s <= _WORK_S:
            return
        try:
            main.join(_REST_S)
        except (AssertionError, RuntimeError):
            # After a fork in a thread that C code started, Python has a stand-in that cannot be waited for.
            resting = False
        began = time.monotonic()

    return rest


# ---- forks

_all: weakref.WeakSet[Limit] = weakref.WeakSet()


@after_fork
def _after_fork_in_child() -> None:
    """The child of a fork must not wait for one of the parent's threads."""
    for limit in _all:
        limit._reset()
