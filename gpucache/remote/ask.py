"""`ask`: what a process does after a miss to have the entry from a remote. It imports no library of any remote.

It asks the courier of this node (`courier`), and starts one where none answers. Whatever the courier, the remote or
another user of the node does, it is over within the time limit, by this process's own clock; where the remote has
failed for another process of the node, at once (`breaker`).
"""

from __future__ import annotations

import json
import os
import socket
import time

from gpucache.disk.lock_place import LockPlace
from gpucache.disk.processes import this_process
from gpucache.disk.spawning import python_command, reap, start_beside, start_detached
from gpucache.environment import REMOTE_TIMEOUT
from gpucache.errors import NotInstalledError
from gpucache.escapes import without_secrets
from gpucache.forks import closed_in_child
from gpucache.remote.breaker import Breaker
from gpucache.remote.libraries import require
from gpucache.remote.meeting import Meeting, address, is_own, is_readable, is_served
from gpucache.remote.question import MOST_BYTES, Answer, Question, parsed_answer
from gpucache.remote.url import RemoteUrl
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.disk.processes import Process
    from gpucache.remote.breaker import Why

_MODULE = "gpucache.remote.courier"
_SLICE_S = 0.05
"""How often whoever waits looks whether others have found meanwhile that the remote does not answer."""
_LOOK_S = 0.005
_PROBE_S = 5.0
_PART = 0.9
"""Of the time that is left, the courier is given so much: then it can still say that the remote was too slow."""


class Reading(Value):
    """A remote from which the entries of one root are read."""

    root: str
    url: str
    """As the environment has it."""
    trust: str
    """Whom to believe, as the environment has it."""
    timeout_s: float
    """For so long one question may take in all."""


def ask(reading: Reading, directory: str, store_key: str, triton_version: str) -> Answer:
    """Have an entry brought into the store, whose key the caller has locked. Blocks for the time limit at most.

    ``directory`` is that of the root's locks. Any thread and any forked child may ask.

    Raises:
        OSError: there can be no process, no connection or no directory on this machine.
    """
    end = time.monotonic() + reading.timeout_s
    meeting = Meeting.of(directory, reading.root, reading.url, reading.trust)
    breaker = Breaker(meeting.state)
    if not breaker.allows(reading.timeout_s + _PROBE_S):
        state = breaker.read()
        return Answer("closed", state.why, state.said)
    asking = _Asking(reading, meeting, breaker, end)
    try:
        answer = asking.answer(store_key, triton_version)
    except NotInstalledError as error:
        return Answer("closed", "unusable", str(error))
    finally:
        reap()  # whoever has started the courier
    if answer is not None:
        return answer
    why: Why = "silent" if asking.has_met else "no-courier"
    said = _said_of(why, reading)
    breaker.closed(why, said)
    return Answer("timeout", why, said)


def _said_of(why: Why, reading: Reading) -> str:
    """What there is to tell where the time is over."""
    remote = without_secrets(reading.url)
    if why == "no-courier":
        return f"{remote}: the process that asks it did not come up within {reading.timeout_s:g} s"
    way_out = f"`gpucache remote check` times each step, {REMOTE_TIMEOUT} allows more"
    return f"{remote}: no answer within {reading.timeout_s:g} s; {way_out}"


def start_ahead(reading: Reading, environ: Mapping[str, str]) -> bool:
    """Start the courier ahead of this process, which is about to become a program; whether this call has started one.

    For a process with one thread. The courier waits for the first question as long as that program runs.

    Raises:
        OSError, UnsafeDirectoryError: no process can be made, or there can be no directory for locks.
        NotInstalledError: it could ask nothing.
    """
    require(RemoteUrl.parse(reading.url))
    directory = LockPlace(reading.root).directory()
    meeting = Meeting.of(directory, reading.root, reading.url, reading.trust)
    if is_served(meeting) or not Breaker(meeting.state).may_start():
        return False
    word = word_of(reading, directory, this_process())
    start_detached(python_command(_MODULE, word), environ)
    return True


class _Asking:
    """One question, from the look for a courier to the answer."""

    def __init__(self, reading: Reading, meeting: Meeting, breaker: Breaker, end: float) -> None:
        self._reading = reading
        self._meeting = meeting
        self._directory = meeting.directory
        self._breaker = breaker
        self._end = end
        self.has_met = False
        """Whether a courier has taken the question."""
        self._has_libraries = False
        """Whether a courier that this process starts could ask the remote."""

    def answer(self, store_key: str, triton_version: str) -> Answer | None:
        """What the courier answers; None where the time is over."""
        while time.monotonic() < self._end:
            connection = self._connected()
            if connection is None:
                self._start()
            else:
                try:
                    return self._met(connection, store_key, triton_version)
                except ConnectionError:
                    # The courier ended: it was killed, or it was idle just then.
                    self._breaker.failed("the courier ended without an answer")
            if self._has_failed():
                return self._closed()
            time.sleep(_LOOK_S)
        return None

    def _start(self) -> None:
        """Start a courier, unless another process is just doing so.

        Raises:
            NotInstalledError: it could ask nothing. Another Python of this node may have what is missing here.
            OSError: there can be none, so that nobody need wait for it.
        """
        if not self._has_libraries:
            require(RemoteUrl.parse(self._reading.url))
            self._has_libraries = True
        if not self._breaker.may_start():
            return
        try:
            start_beside(_MODULE, [word_of(self._reading, self._directory)], os.environ)
        except OSError:
            self._breaker.not_started()
            raise

    def _met(self, connection: socket.socket, store_key: str, triton_version: str) -> Answer | None:
        """What the courier answers at the other end; None where the time is over.

        Raises:
            ConnectionError: the courier has closed the connection.
        """
        self.has_met = True
        closed_in_child.add(connection.fileno())
        try:
            left_s = self._end - time.monotonic()
            question = Question(store_key, triton_version, left_s * _PART)
            return self._exchanged(connection, question)
        except ConnectionError:
            self.has_met = False
            raise
        finally:
            closed_in_child.discard(connection.fileno())
            connection.close()

    def _connected(self) -> socket.socket | None:
        """A connection to the courier of this user; None where none takes it now."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            with address(self._meeting) as path:
                connection.connect(path)
            if is_own(connection):
                return connection
        except (FileNotFoundError, ConnectionError, BlockingIOError):
            pass  # there is none, it has ended, or too many ask at once
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _exchanged(self, connection: socket.socket, question: Question) -> Answer | None:
        """Send a question and take the answer; None where the time is over.

        Raises:
            ConnectionError: the courier has closed the connection.
        """
        connection.send(question.encoded())  # as long as this, it fits into an empty buffer
        data = b""
        is_last = False
        while not data.endswith(b"\n") and len(data) <= MOST_BYTES:
            if is_last:
                return None
            left_s = self._end - time.monotonic()
            # What has come is looked at once more: this process may have been stopped meanwhile.
            is_last = left_s <= 0
            if is_readable(connection, min(max(left_s, 0), _SLICE_S)):
                more = connection.recv(MOST_BYTES)
                if not more:
                    raise ConnectionResetError
                data += more
            elif self._has_failed():
                return self._closed()
        return parsed_answer(data) or Answer("error", "courier", "the courier makes no sense")

    def _has_failed(self) -> bool:
        return self._breaker.read().has_failed(time.monotonic())

    def _closed(self) -> Answer:
        state = self._breaker.read()
        return Answer("closed", state.why, state.said)


def word_of(reading: Reading, directory: str, program: Process | None = None) -> str:
    """What a courier is started with (`courier.Asked`)."""
    return json.dumps(
        {
            "root": reading.root,
            "directory": directory,
            "url": reading.url,
            "trust": reading.trust,
            "timeout_s": reading.timeout_s,
            "program": program,
        }
    )
