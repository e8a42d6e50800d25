"""`Supervisor`: the processes of the pool, as the scheduler sees them: it starts, asks, limits and kills them.

What is said here of processes holds for importers and workers alike; what they do is not known here. One thread.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from contextlib import suppress

from gpucache.warm.pool.channel import Channel
from gpucache.warm.pool.child import Child, Event
from gpucache.warm.pool.forking import (
    adopt_orphans,
    children_of_this_thread,
    close_others,
    end_with,
    leave_terminal_and_files,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpucache.warm.pool.channel import Message
    from gpucache.warm.pool.child import Role

_START_S = 30.0
"""A process that was forked is given so long to say its number."""
_LOOK_S = 1.0
"""How often deadlines are looked at, at least, while there are any."""
_END_S = 5.0
"""In the end processes are given so long to remove what they have staged."""


class Supervisor:
    """All processes below this one. Ended by `end`, or with this process."""

    def __init__(self) -> None:
        """Become the parent of whatever is forked below.

        Raises:
            OSError: this system cannot do that.
        """
        adopt_orphans()
        self._selector = selectors.DefaultSelector()
        self._children: dict[Channel, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._wake, their_wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(their_wake, warn_on_full_buffer=False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._ready: list[Event] = []
        self._looked = time.monotonic()
        self.ended = 0
        """How many processes have ended, or were never made; with each there may be room for another."""

    # ---- starting

    def start_first(self, serve: Callable[[Channel], None], kept: set[int]) -> Child:
        """Fork the process from which all others are forked; it calls ``serve``, and has the ``kept`` descriptors open.

        Raises:
            OSError: no process can be made.
        """
        ours, theirs, output, their_output = self._connections()
        scheduler = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end_with(scheduler)
            close_others({*kept, theirs.fileno(), their_output})
            leave_terminal_and_files(their_output)
            serve(theirs)
        theirs.close()
        os.close(their_output)
        child = self._added(Child("importer", ours, output, None))
        self._known(child, pid)
        return child

    def start_from(self, importer: Child, role: Role) -> Child:
        """Have an importer fork a process, which says its number as its first message.

        Raises:
            OSError: no connection can be made, or the importer has ended.
        """
        ours, theirs, output, their_output = self._connections()
        child = self._added(Child(role, ours, output, importer))
        try:
            request = {"do": "fork", "role": role}
            importer.channel.send(request, theirs.fileno(), their_output, wait=False)
        except OSError:
            self._forget(child)
            raise
        finally:
            theirs.close()
            os.close(their_output)
        self._limit(child, _START_S)
        return child

    def _connections(self) -> tuple[Channel, Channel, int, int]:
        output, their_output = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output, False)
        try:
            return (*Channel.pair(), output, their_output)
        except OSError:
            os.close(output)
            os.close(their_output)
            raise

    def _added(self, child: Child) -> Child:
        self._children[child.channel] = child
        read = selectors.EVENT_READ
        self._selector.register(child.channel, read, lambda: self._receive(child))
        self._selector.register(child.output, read, lambda: self._listen(child))
        return child

    def _known(self, child: Child, pid: int) -> None:
        child.pid = pid
        self._by_pid[pid] = child

    def watch(self, descriptor: int, call: Callable[[], None]) -> None:
        """Have `events` call this whenever something can be read there."""
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    # ---- asking and ending

    def ask(self, child: Child, message: Message, limit_s: float) -> None:
        """Send a message, which is to be answered within the limit, as `answered` says; else the process is killed."""
        self._limit(child, limit_s)
        try:
            child.channel.send(message, wait=False)
        except OSError:
            self.kill(child, "it does not listen")

    @property
    def is_busy(self) -> bool:
        """Whether any process is to answer, or to end."""
        return any(child.deadline is not None for child in self._all())

    def answered(self, child: Child) -> None:
        """Let a process go on without a limit: it has answered."""
        child.deadline = None

    def _limit(self, child: Child, limit_s: float) -> None:
        child.limit_s = limit_s
        child.deadline = time.monotonic() + limit_s

    def close(self, child: Child) -> None:
        """Tell a process to end. Nothing that it says is an event from now on."""
        if child.pid is None:
            self._forget(child)  # once it begins, nobody listens, and it ends
        elif not child.is_closed:
            child.is_closed = True
            self._selector.unregister(child.channel)
            child.channel.close()
            self._limit(child, _END_S)

    def kill(self, child: Child, why: str) -> None:
        """Kill a process and what it has started in its group. One whose number is not known: its parent, with it."""
        child.why_killed = child.why_killed or why
        child.deadline = None
        if child.pid is not None:
            _kill_group(child.pid)
        elif child.parent is not None:
            # It hangs within the fork, and is of its parent's group.
            self.kill(child.parent, f"a process that it has forked does not begin: {why}")

    def end(self, at_once: bool) -> None:
        """End all processes; unless ``at_once``, each is given a few seconds to remove what it has staged."""
        deadline = time.monotonic() + (0 if at_once else _END_S)
        for child in list(self._children.values()):
            self.close(child)
        while self._by_pid and time.monotonic() < deadline:
            for _ in self.events(deadline):
                pass
        for pid in self._by_pid:
            _kill_group(pid)
        self._sweep()

    def _sweep(self) -> None:
        """Kill and wait for whatever is left: what modules have started is this process's child by now."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            for pid in children_of_this_thread():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
            except ChildProcessError:
                return

    # ---- events

    def events(self, until: float | None = None) -> Iterator[Event]:
        """What has happened, once something has; nothing at the time ``until``, of `time.monotonic`."""
        timeout = self._timeout(until)
        for key, _ in self._selector.select(timeout):
            key.data()
        self._reap()
        self._move_deadlines()
        self._kill_late()
        ready, self._ready = self._ready, []
        yield from ready

    def _timeout(self, until: float | None) -> float | None:
        deadlines = [one.deadline for one in self._all() if one.deadline is not None]
        if until is not None:
            deadlines.append(until)
        if self._ready:
            return 0
        if not deadlines:
            return None
        return min(_LOOK_S, max(0.0, min(deadlines) - time.monotonic()))

    def _all(self) -> Iterator[Child]:
        return iter(tuple(self._children.values()))

    def _receive(self, child: Child) -> None:
        """Take all that a process has said."""
        while not child.is_closed:
            try:
                received = child.channel.receive(wait=False)
            except BlockingIOError:
                return
            if received is None:
                self._other_end_is_closed(child)
                return
            if "cannot" in received.message:
                # The importer says so, before it closes the connection.
                child.why_killed = received.message["cannot"]
                continue
            if "pid" in received.message:
                child.deadline = None
                self._known(child, received.message["pid"])
            self._ready.append(Event(child, received.message))

    def _other_end_is_closed(self, child: Child) -> None:
        if child.pid is None:
            self._gone(child, child.why_killed or "its process ended before it had begun")
        elif not child.is_closed:
            child.is_closed = True
            self._selector.unregister(child.channel)
            # It is about to end, or has closed what it must not.
            self._limit(child, _END_S)

    def _listen(self, child: Child) -> None:
        """Keep the end of what a process prints."""
        if child.output < 0:
            return
        try:
            data = os.read(child.output, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(child.output)
            os.close(child.output)
            child.output = -1
        child.keep_tail(data)

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 1 << 12)

    def _reap(self) -> None:
        """Take notice of processes that have ended, after all that they have said."""
        while True:
            pid = _ended_child()
            if pid is None:
                return
            child = self._by_pid.get(pid)
            if child is None:
                for starting in self._all():
                    self._receive(starting)  # it may have said its number just now
                child = self._by_pid.get(pid)
            if child is not None:
                self._receive(child)
                self._listen(child)
                _kill_group(pid)  # before its number is free: what it has started may still run
            _, status = os.waitpid(pid, 0)
            if child is not None:
                del self._by_pid[pid]
                self._gone(child, child.how_it_ended(status))

    def _gone(self, child: Child, how: str) -> None:
        self._forget(child)
        self._ready.append(Event(child, None, how))

    def _forget(self, child: Child) -> None:
        self.ended += 1
        self._children.pop(child.channel, None)
        if not child.is_closed:
            child.is_closed = True
            self._selector.unregister(child.channel)
        if child.output >= 0:
            self._selector.unregister(child.output)
            os.close(child.output)
            child.output = -1
        child.channel.close()
        child.deadline = None

    def _move_deadlines(self) -> None:
        """Let no time count in which this process did not run: a job may be stopped for hours, with all its processes.

        So does ``scontrol suspend``, by SIGSTOP; and a caller that does not read what this process tells stops it too.
        """
        now = time.monotonic()
        lost = now - self._looked - _LOOK_S
        self._looked = now
        if lost < _LOOK_S:
            return
        for child in self._all():
            if child.deadline is not None:
                child.deadline += lost

    def _kill_late(self) -> None:
        now = time.monotonic()
        said = {event.child for event in self._ready}  # it may be the answer
        for child in self._all():
            is_late = child.deadline is not None and now >= child.deadline
            if is_late and child not in said:
                self.kill(child, f"it took more than the time limit of {child.limit_s:g} s")


def _ended_child() -> int | None:
    """The number of a child that has ended, which stays its own until it is waited for."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _kill_group(pid: int) -> None:
    """Kill a process and its group; neither number is another's while this process has not waited for it."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
