"""The courier of a remote on this node: a process that asks the remote for what other processes miss, one entry each.

No rank asks a remote itself: what comes from there is anybody's, and is read here by zstandard and cryptography, where
an end or an endless loop is no program's, and whoever asked waits by its own clock. Servers are asked by processes that
the courier starts and kills (`store_process`). One courier serves all processes of a user on a node that ask one remote
for one root; the first that misses starts it (`ask`), or `gpucache run` ahead of them, and it ends when nobody has
asked for half a minute.

Limit: its environment, and with that its credentials, are those of whoever started it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress

from gpucache.disk.lock_place import open_lock_directory
from gpucache.disk.locks import signature, take
from gpucache.disk.processes import is_running
from gpucache.disk.sharing import modes_in
from gpucache.disk.spawning import settle_in
from gpucache.errors import GpuCacheError
from gpucache.escapes import printable
from gpucache.forks import run_at_exit
from gpucache.remote.breaker import Breaker, Waste
from gpucache.remote.meeting import Meeting, address, forget_old, is_over, is_own, is_readable
from gpucache.remote.question import MOST_BYTES, Answer, parsed_question
from gpucache.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpucache.remote.question import Question

    Fetch = Callable[[Question, Callable[[], bool]], Answer]

IDLE_S = 30.0
AHEAD_S = 900.0
"""For so long a courier that was started ahead of a program waits for its first question, while the program runs."""
_LOOK_S = 1.0
_STUCK_S = 10.0
"""A request that has not come back so long after its limit never will: the whole process ends."""
_MOST_AT_ONCE = 256
_MOST_REQUESTS = 4
"""So many requests are under way at once. Each has a process that asks the server, whose start takes longer than the
requests of all ranks one after the other."""
_READ_S = 5.0
_AGAIN_S = 0.01
_BACKLOG = 1024


class Asked:
    """What a courier is started with: the only word of its command, in JSON."""

    def __init__(self, said: str) -> None:
        asked = json.loads(said)
        self.root: str = asked["root"]
        self.directory: str = asked["directory"]
        self.url: str = asked["url"]
        self.trust: str = asked["trust"]
        self.timeout_s: float = asked["timeout_s"]
        program = asked["program"]
        self.program = None if program is None else (program[0], program[1])
        """The process ahead of which the courier was started; None where a process has asked already."""


def main() -> None:
    """Serve until nobody asks any more. Does not return."""
    code = 1
    try:
        settle_in()
        _serve(Asked(sys.argv[1]))
        code = 0
    finally:
        try:
            run_at_exit()  # what was staged goes
        finally:
            os._exit(code)  # whatever threads there are that never return


def _serve(asked: Asked) -> None:
    meeting = Meeting.of(asked.directory, asked.root, asked.url, asked.trust)
    if _locked_for_life(meeting) is None:
        return  # another courier serves
    breaker = Breaker(meeting.state)
    forget_old(meeting.directory)
    try:
        fetch = opened(asked)
    except GpuCacheError as error:
        breaker.closed("unusable", str(error))
        return
    except Exception as error:
        breaker.closed("unusable", f"a defect of gpucache's: {type(error).__name__}")
        raise
    Courier(meeting, breaker, fetch, asked.program).serve()


def _locked_for_life(meeting: Meeting) -> int | None:
    """The descriptor by which this process alone is the courier, until it ends; None where another one is."""
    here = open_lock_directory(meeting.directory)
    try:
        fd = take(here, os.path.basename(meeting.lock))
        if fd is not None:
            with suppress(OSError):  # a full disk: it stays unnamed
                os.pwrite(fd, signature("asking a remote for all processes of this node"), 0)
        return fd
    finally:
        os.close(here)


def opened(asked: Asked) -> Fetch:
    """Open the remote; what takes a question to it.

    Raises:
        GpuCacheError: the remote cannot be asked as things are set up.
    """
    from gpucache.remote.fetch import opened_fetch  # all that is slow to import

    return opened_fetch(asked.root, asked.url, asked.trust, asked.timeout_s)


class Courier:
    """Answers questions, each in a thread of its own, until nobody has asked for `IDLE_S`."""

    def __init__(
        self,
        meeting: Meeting,
        breaker: Breaker,
        fetch: Fetch,
        program: tuple[int, int] | None = None,
    ) -> None:
        self._meeting = meeting
        self._breaker = breaker
        self._fetch = fetch
        self._program = program
        self._began = self._last = time.monotonic()
        self._turns = threading.BoundedSemaphore(_MOST_REQUESTS)
        self._limits: dict[socket.socket, float] = {}
        """Until when each connection is to be answered."""

    def serve(self) -> None:
        """Answer whoever connects. Returns once nobody asks any more, or its socket is no more what is found there."""
        with address(self._meeting) as path, socket.socket(socket.AF_UNIX) as listener:
            own = self._listen(listener, path)
            self._breaker.came_up()
            while not self._is_over() and _is_same(path, own):
                self._take(listener, _LOOK_S)
            if _is_same(path, own):
                os.unlink(path)
            # Whoever has connected before is answered.
            while self._take(listener, 0.0) or self._limits:
                time.sleep(_AGAIN_S)

    def _listen(self, listener: socket.socket, path: str) -> os.stat_result:
        """Have a socket at a path; what it is there.

        Raises:
            OSError: there can be none, which the node is told.
        """
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{path}.new")  # a dead courier's: this one has the lock
            listener.bind(f"{path}.new")
            listener.listen(_BACKLOG)
            os.chmod(f"{path}.new", modes_in(os.path.dirname(path)).file)
            # Only now: whoever finds the socket is answered.
            os.rename(f"{path}.new", path)
            return os.lstat(path)
        except OSError as error:
            said = f"there can be no socket in {self._meeting.directory}: {error.strerror}"
            self._breaker.closed("no-courier", printable(said))
            raise

    def _take(self, listener: socket.socket, timeout_s: float) -> bool:
        """Take one connection, if one comes in time."""
        if self._is_stuck():
            os._exit(1)
        if not is_readable(listener, timeout_s):
            return False
        try:
            connection, _ = listener.accept()
        except OSError:  # too many files are open: whoever waits is taken once one is closed
            time.sleep(_AGAIN_S)
            return False
        self._last = time.monotonic()
        if not is_own(connection) or len(self._limits) >= _MOST_AT_ONCE:
            connection.close()
            return True
        self._limits[connection] = self._last + _READ_S
        thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
        try:
            start(thread)
        except OSError:
            self._forget(connection)
        return True

    def _is_over(self) -> bool:
        now = time.monotonic()
        nobody_asked = self._last == self._began
        if nobody_asked and self._program is not None:
            return now - self._began > AHEAD_S or not is_running(self._program)
        return not self._limits and now - self._last > IDLE_S

    def _is_stuck(self) -> bool:
        now = time.monotonic()
        return any(now > limit + _STUCK_S for limit in tuple(self._limits.values()))

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_READ_S)
            question = parsed_question(_line(connection))
            if question is not None:
                self._limits[connection] = time.monotonic() + question.timeout_s
                answer = self._answered(question, connection)
                connection.sendall(answer.encoded())
        except OSError:
            pass  # whoever asked is gone
        finally:
            self._last = time.monotonic()
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        del self._limits[connection]
        connection.close()

    def _answered(self, question: Question, connection: socket.socket) -> Answer:
        """Ask the remote, once fewer than `_MOST_REQUESTS` do."""
        began = time.monotonic()
        if not self._turns.acquire(timeout=question.timeout_s):
            return Answer("closed", "busy", "too many ask at once")
        try:
            waited_s = time.monotonic() - began
            left = question._replace(timeout_s=question.timeout_s - waited_s)
            return self._asked(left, connection)
        finally:
            self._turns.release()

    def _asked(self, question: Question, connection: socket.socket) -> Answer:
        """Ask the remote, and let the node know what came of it."""
        began = time.monotonic()
        end = began + question.timeout_s

        def is_waited_for() -> bool:
            return time.monotonic() < end and not is_over(connection)

        try:
            answer = self._fetch(question, is_waited_for)
        except Exception as error:  # nobody is above who could tell
            answer = Answer("error", "defect", f"a defect of gpucache's: {type(error).__name__}")
        if answer.did in ("hit", "miss") and time.monotonic() >= end:
            answer = Answer("timeout", "timeout")  # a remote that is too slow, whatever it has
        waste = Waste(time.monotonic() - began, question.timeout_s)
        if answer.did == "timeout":
            self._breaker.closed("timeout", answer.said)
        elif answer.did == "error":
            self._breaker.failed(answer.said, waste)
        elif answer.did in ("miss", "bad"):
            self._breaker.missed(waste)
        elif answer.did == "hit":
            self._breaker.answered()
        return answer


def _line(connection: socket.socket) -> bytes:
    """What comes up to the end of a line.

    Raises:
        OSError: nothing comes for seconds, or the connection broke.
    """
    data = b""
    while not data.endswith(b"\n") and len(data) < MOST_BYTES:
        more = connection.recv(MOST_BYTES)
        if not more:
            break
        data += more
    return data


def _is_same(path: str, own: os.stat_result) -> bool:
    """Whether what was made at a path is still there."""
    try:
        return os.path.samestat(os.lstat(path), own)
    except OSError:
        return False
