"""`SchedulerProcess`: the scheduler as the caller's process sees it: it is started, listened to, and ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

from gpucache.disk.files import remove_tree
from gpucache.environment import RECORD, ROOT
from gpucache.errors import GpuCacheError
from gpucache.forks import closed_in_child
from gpucache.warm.pool.channel import Channel
from gpucache.warm.pool.child import exit_in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from gpucache.warm.pool.channel import Message
    from gpucache.warm.pool.plan import Place

_ASK_S = 0.5
"""How often it is asked whether the pool is to stop, in seconds."""
_END_S = 15.0
"""So long may the scheduler take to end what it has started."""
START = """if True:
    import sys
    sys.path[:] = {path!r}
    from gpucache.warm.pool.scheduler import serve
    serve({file}, {place}, {caller})
"""


class PoolError(GpuCacheError, RuntimeError):
    """Nothing can be compiled at all: there is no Triton, or no process can be started. ``reason`` says which."""

    error_kind = "pool"

    def __init__(self, reason: str) -> None:
        python = sys.executable or "an unknown Python"
        hint = "install Triton there, or run the Python that has it"
        super().__init__(f"no recipe can be compiled by {python}: {reason}", hint, reason)
        self.reason = reason


class SchedulerProcess:
    """A fresh process that does what a plan says. A context, at whose end the process and all below it have ended."""

    def __init__(self, file: int, place: Place, root: str) -> None:
        """Start the process; ``file`` is the descriptor of the file of the plan, ``root`` the root it is about.

        Raises:
            PoolError: it cannot be started.
            OSError: this process may open no more files.
        """
        self._channel, theirs = Channel.pair()
        self._has_begun = False
        # A process that the caller forks meanwhile is not to keep the connection open.
        closed_in_child.add(self._channel.fileno())
        self._temporary = _temporary()
        try:
            self._process = _started(file, place, root, theirs, self._temporary)
        except (OSError, ValueError) as error:
            self._close()
            self._remove_temporary()
            raise PoolError(f"it cannot be started: {error}") from error
        finally:
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, at once where it is not over."""
        self._close()  # by which it knows that it is to end
        self._process.send_signal(signal.SIGCONT)  # it may be stopped
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        finally:
            self._process.kill()  # and the kernel kills all below it
            self._process.wait()
            self._remove_temporary()

    def _close(self) -> None:
        closed_in_child.discard(self._channel.fileno())
        self._channel.close()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            remove_tree(self._temporary)

    def messages(self, wake: int, is_over: Callable[[], bool]) -> Iterator[Message]:
        """What the scheduler says, until it has ended.

        ``is_over`` is asked twice a second, and whenever something can be read from the descriptor ``wake``: once it
        says yes, the scheduler is told to stop, and soon ends.
        """
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        is_stopped = False
        while True:
            ready = dict(poll.poll(_ASK_S * 1000))
            if not is_stopped and is_over():
                is_stopped = True
                poll.unregister(wake)
                self.stop()
            if self._channel.fileno() in ready:
                received = self._channel.receive()
                if received is None or received.message["says"] == "end":
                    return
                self._has_begun = True
                yield received.message

    def stop(self) -> None:
        """Tell it to end all processes now."""
        with suppress(OSError):  # it has ended
            self._channel.send({"do": "stop"})
        self._process.send_signal(signal.SIGCONT)

    def why_ended(self) -> str:
        """How it has ended, when it should have gone on.

        Raises:
            PoolError: it could not even begin; what it has said of that is on stderr.
        """
        code = self._process.wait()
        how = f"the scheduler's {exit_in_words(code)}"
        if code > 0 and not self._has_begun:
            raise PoolError(how)
        return how


def _temporary() -> str | None:
    """A directory for the temporary files of all processes of the pool; None where there is no place for one.

    Triton's ``.ptx`` and ``.log`` files stay where a compile is killed (3.9.0 `backends/nvidia/compiler.py`
    `make_cubin`).
    """
    try:
        return tempfile.mkdtemp(prefix="gpucache-warm-")
    except OSError:
        return None


def _started(
    file: int, place: Place, root: str, caller: Channel, temporary: str | None
) -> subprocess.Popen[bytes]:
    path = []
    for entry in sys.path:
        if isinstance(entry, (str, os.PathLike)):
            path.append(os.path.abspath(os.fspath(entry)))
    start = START.format(path=path, file=file, place=place, caller=caller.fileno())
    flags = ["-u", "-X", f"utf8={sys.flags.utf8_mode}"]
    if sys.flags.isolated:
        flags.append("-I")
    environ = dict(os.environ)
    environ[ROOT.name] = root  # where Triton's own key may be remembered
    environ.pop(RECORD.name, None)  # no program asks for what is compiled there
    if temporary is not None:
        environ["TMPDIR"] = temporary
    return subprocess.Popen(
        [sys.executable, *flags, "-c", start],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(file, caller.fileno()),
        start_new_session=True,  # ^C is the caller's; and nothing below can ask the terminal
    )
