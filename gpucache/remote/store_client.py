"""`StoreProcesses`: the processes that ask a store for this one, and how they are started, asked and killed."""

from __future__ import annotations

import os
import socket
import subprocess
import weakref
from typing import TYPE_CHECKING

from gpucache.disk.spawning import python_command
from gpucache.log import DEBUG, tell
from gpucache.remote.store_messages import Ended, Receiver, send

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpucache.remote.bounded import Deadline
    from gpucache.remote.remote import Patience
    from gpucache.remote.services import Service
    from gpucache.remote.store_messages import Message

_MODULE = "gpucache.remote.store_process"
_START_S = 60.0
"""A process of this machine's own has so long to come up. No server can make that longer."""
_THREADS = "2"
"""So many threads opendal has, which by itself takes one for each core, and memory for each."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_THIS_ONE = f"sys.path.insert(0, {_PACKAGE!r})"
"""By this line the process has the same gpucache, and speaks as this one does."""


class Died(Exception):
    """The process has died while it was asked: what it got was more than its memory holds, or somebody killed it."""


class StoreProcess:
    """One process, which answers one question at a time. After any error but an answer's own it is dead."""

    def __init__(self, opened: Message, environ: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        words = python_command(_MODULE, str(theirs.fileno()), first=_THIS_ONE)
        nowhere = subprocess.DEVNULL
        with theirs:
            process = subprocess.Popen(
                words,
                env={**environ, "TOKIO_WORKER_THREADS": _THREADS},
                cwd="/",
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,  # where a panic would show what a server has said
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = ours
        self._receiver = Receiver(ours)
        self._kill = weakref.finalize(self, _end, process, ours, os.getpid())
        self._is_open = False
        self._opened = opened

    def is_alive(self) -> bool:
        """Whether the process still answers, and has said nothing unasked: one that was idle for long has ended."""
        import select

        if not self._kill.alive:
            return False
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    def ask(
        self, question: Message, deadline: Deadline, fd: int | None = None
    ) -> tuple[Message, bytes]:
        """Ask one question; the answer, and the bytes that belong to it. ``fd`` is a file that goes along, to be sent.

        An answer with a field ``failed`` says how the request failed: a `RemoteKind` or a `Meaning`.

        Raises:
            TimeoutError: the deadline is over; the process is killed.
            Died: the process is dead.
        """
        opened = self.come_up()
        if "failed" in opened:
            return opened, b""
        sent_bytes = 0 if fd is None else os.fstat(fd).st_size
        try:
            send(self._channel, question, fd=fd)
            answer, data = self._receiver.take(
                lambda: self._wait_at_most(deadline.left_s(sent_bytes))
            )
        except Ended:
            self._kill()
            raise Died from None
        except BaseException:  # the time is over, or ^C: what comes later answers nobody
            self._kill()
            raise
        if "said" in answer:
            tell(DEBUG, "%s", answer["said"])
        return answer, data

    def come_up(self) -> Message:
        """Wait until the process is ready to ask a server; an answer with a field ``failed`` says why it never will.

        Raises:
            TimeoutError: it is not ready after a minute; it is killed.
            Died: the process is dead.
        """
        try:
            return {} if self._is_open else self._open()
        except Ended:
            self._kill()
            raise Died from None
        except BaseException:
            self._kill()
            raise

    def _open(self) -> Message:
        self._channel.settimeout(_START_S)
        send(self._channel, self._opened)
        answer, _ = self._receiver.take()
        self._is_open = "failed" not in answer
        return answer

    def _wait_at_most(self, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        self._channel.settimeout(seconds)


def _end(process: subprocess.Popen[bytes], channel: socket.socket, starter: int) -> None:
    """Kill a process that answers nobody any more; in a fork of its starter only let go of the channel."""
    channel.close()
    if os.getpid() == starter:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # or `subprocess` warns of another's child


class StoreProcesses:
    """The processes of one remote: as many as there are requests at once. Any number of threads may take one.

    The first one is started at once, so that it comes up while its starter still does other things.
    """

    def __init__(
        self,
        service: Service,
        environ: Mapping[str, str],
        patience: Patience,
    ) -> None:
        self._opened: Message = {
            "do": "open",
            **service._asdict(),
            "limit_s": patience.in_all_s,
        }
        self._environ = environ
        self._pid = os.getpid()
        self._idle = [self._started()]

    def take(self) -> StoreProcess:
        """A process for one request.

        Raises:
            OSError: none can be started.
        """
        if self._pid != os.getpid():  # a fork has processes of its own
            self._pid, self._idle = os.getpid(), []
        while self._idle:
            try:
                process = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if process.is_alive():
                return process
        return self._started()

    def give_back(self, process: StoreProcess) -> None:
        """Let the next request have this process, unless it is dead."""
        if process.is_alive():
            self._idle.append(process)

    def _started(self) -> StoreProcess:
        return StoreProcess(self._opened, self._environ)
