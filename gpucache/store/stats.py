"""Count hits and misses: in memory, then in one small file for each process and hour, which whoever comes by folds.

A process rewrites its own file at a miss, at exit, and otherwise at most every two seconds, so that a process that is
killed or leaves through ``os._exit`` loses its last seconds only. With each hour in which it counts it begins another
file, so that the sums of hours are known and no file grows. Not durable across a power cut.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from gpucache.forks import after_fork, at_exit
from gpucache.store.counter_files import OwnFile, host_label, opened, short_label
from gpucache.store.counts import ANY_TIME, HOUR_S, Sums, Values, Where, add_all, add_up, this_hour

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Brought = Literal["fallback_hits", "remote_hits"]
    Counter = Literal[
        "hits",
        "shared_hits",
        "misses",
        "waits",
        "errors_degraded",
        "fallback_hits",
        "fallback_misses",
        "fallback_errors",
        "fallback_bytes",
        "remote_hits",
        "remote_misses",
        "remote_errors",
        "remote_bad",
        "remote_bytes",
        "pulled",
        "pulled_bytes",
        "pushed",
        "push_errors",
        "pushed_bytes",
        "evicted",
        "evicted_bytes",
        "waited_s",
        "compiled_s",
        "saved_s",
        "fallback_s",
        "remote_s",
        "pull_s",
        "push_s",
    ]

_FLUSH_S = 2.0
MOST_AT_ONCE = 1e9
"""More seconds than a compile or a wait takes: thirty years."""
MOST_BYTES_AT_ONCE = 1e13
"""More bytes than any pack has."""
REMOTE = "remote"
"""In the place of a device directory, for the counters: what was moved for no device in particular."""


class Stats:
    """The counters of one process for one device directory; without ``directory``, only in memory.

    ``directory`` is where the files of counters are, ``device`` what `counts.device_label` says. Any thread may count.
    """

    def __init__(self, directory: str | None, device: str) -> None:
        self.directory = directory
        self.device = short_label(device)
        self._reset()
        _all.append(self)

    def _reset(self) -> None:
        self._mutex = threading.RLock()  # a signal handler may count while its thread does
        self._writing = False
        self._flushed = 0.0
        self._file: OwnFile | None = None
        self._host = host_label()
        self._hour = this_hour()
        self._values: Values = {}
        self._written: Values = {}
        self._brought: list[Brought] = []
        self._left: Values = {}

    @property
    def of_process(self) -> Values:
        """All that this process has counted, whatever of that was left to be folded."""
        with self._mutex:
            values = dict(self._values)
            for name, left in self._left.items():
                values[name] = values.get(name, 0) + left
        return values

    def add(self, name: Counter, amount: float = 1, *, now: bool = False) -> None:
        """Add to a counter; with ``now``, or two seconds after the last time, the counters are written to the file.

        An amount that makes no sense, as a damaged manifest may name, counts as nothing: no reader would take the sum.
        """
        if amount != 1:  # a hit counts one, and is to cost nothing
            most = MOST_BYTES_AT_ONCE if name.endswith("_bytes") else MOST_AT_ONCE
            amount = amount if 0 <= amount < most else 0
        if now or time.monotonic() - self._flushed > _FLUSH_S:
            self._begin_hour()
            self._add(name, amount)
            self.flush()
            return
        with self._mutex:
            values = self._values
            values[name] = values.get(name, 0) + amount

    def brought(self, name: Brought) -> None:
        """Count that a fallback or a remote gave an entry, together with the next hit of the store: it becomes that.

        So no reader sees the first without the second, and what the store gave by itself (`store.levels`) never gets
        less. An entry that came and never became a hit is not counted.
        """
        self._brought.append(name)

    def add_shared(self, *, now: bool = False) -> None:
        """Count a hit of the store, and with it that a fallback or a remote had brought the entry; ``now`` as `add`."""
        self._begin_hour()
        with self._mutex:
            self._add("shared_hits", 1)
            if self._brought:
                self._add(self._brought.pop(), 1)
        if now:
            self.flush()

    def _add(self, name: Counter, amount: float) -> None:
        with self._mutex:
            self._values[name] = self._values.get(name, 0) + amount

    def flush(self) -> None:
        """Write the counters to this process's file; where the disk refuses, they are tried again the next time."""
        with self._mutex:
            self._flushed = time.monotonic()
            if self._writing or self.directory is None or self._values == self._written:
                return
            is_first = self._file is None
            self._write()
            has_begun = is_first and self._file is not None
        if has_begun:
            _fold_few(self.directory)

    def leave(self) -> bool:
        """Write the counters, and let the file be folded: what is counted from here on goes to another file.

        Returns whether there was a file.
        """
        with self._mutex:
            if self._writing:
                return False
            if self.directory is not None and self._values != self._written:
                self._write()
            if self._file is None:
                return False
            self._writing = True
            try:
                self._leave_file(self._file)
            finally:
                self._writing = False
            return True

    def _begin_hour(self) -> None:
        """Leave the counters of an hour that is over.

        What was not written yet was counted in the two seconds after the last writing, however long ago that was.
        """
        if self._hour == this_hour():
            return
        with self._mutex:
            self.leave()
            if self._file is None:
                self._hour = this_hour()

    def _write(self) -> None:
        """Write the counters to the file of this process, which is made where there is none."""
        assert self.directory is not None
        self._writing = True
        try:
            # Another node has folded it, after a day of silence, or a cleaner swept it: nothing may count twice.
            if self._file is not None and not self._file.is_in_place():
                self._leave_file(self._file)
            if self._file is None:
                self._file = OwnFile(self.directory)
            where = Where(self._host, self.device, self._hour)
            values = dict(self._values)
            said = {name: value for name, value in values.items() if value}
            self._file.write(where, said)
            self._written = values
        except OSError:
            return
        finally:
            self._writing = False

    def _leave_file(self, file: OwnFile) -> None:
        """Close the file, and keep of the counters what is not in the file."""
        file.close()
        self._file = None
        for name, written in self._written.items():
            self._values[name] -= written
            self._left[name] = self._left.get(name, 0) + written
        self._written = dict.fromkeys(self._written, 0.0)

    def forget(self) -> None:
        """In the child of a fork: start from nothing, leaving the parent's file and its lock alone."""
        if self._file is not None:
            self._file.close()
        self._reset()


# ---- sums


def totals(root: str) -> dict[str, Values]:
    """The sum over all processes, living and ended, of each device directory's counters. Writes nothing, never waits.

    A total never gets less, nor counts twice, whoever writes and folds meanwhile.
    """
    return add_up(sums_of(root))


def hours(root: str, since: float = 0.0) -> Sums:
    """The counters of each host, device directory and hour, of those of the last 14 days that end after ``since``.

    ``since`` is in seconds since the epoch. Like `totals`; what was counted before is in no hour.
    """
    sums: Sums = {}
    for where, values in sums_of(root).items():
        if where.hour != ANY_TIME and (where.hour + 1) * HOUR_S > since:
            sums[where] = values
    return sums


def sums_of(root: str) -> Sums:
    """All counters, by host, device directory and hour; in `ANY_TIME` what was counted before the last 14 days.

    None are those that cannot be read; `readable_sums_of` tells that.
    """
    try:
        return readable_sums_of(root)
    except OSError:
        return {}


def readable_sums_of(root: str) -> Sums:
    """The same, for who must not take counters that cannot be read for ones that have begun anew.

    Raises:
        OSError: the directory of the counters cannot be listed, for another reason than that it is not there.
    """
    from gpucache.store.counter_look import look

    sums: Sums = {}
    with suppress(FileNotFoundError), opened(root) as here:
        seen = look(here)
        for known, file in seen.files.items():
            if known not in seen.absorbed:
                add_all(sums, file.sums)
    return sums


# ---- the ends of this process


_all: list[Stats] = []


def _leave_all() -> None:
    """At the end of the process: its counters are written, and folded."""
    left: dict[str, None] = {}
    for stats in _all:
        if stats.leave() and stats.directory is not None:
            left[stats.directory] = None
    for directory in left:
        _fold_few(directory)


def _fold_few(directory: str) -> None:
    # Only a process that has a file of its own folds.
    from gpucache.store.counter_fold import fold_few

    fold_few(directory)


@after_fork
def _after_fork_in_child() -> None:
    for stats in _all:
        stats.forget()


at_exit(_leave_all)
