"""`Screen`: a whole terminal for a command that draws again and again, and gives it back as it was, whatever happens.

The terminal is given back when the command ends, fails, is interrupted, terminated or hung up, and while it is stopped
by ctrl-Z. After a ``kill -9`` nobody can: the shell's ``reset`` does. Signals are handled in the main thread alone.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING

from gpucache.cli.styled import stdout_console
from gpucache.cli.terminal import OutputError, has_person

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, TracebackType
    from typing import Any

    from rich.text import Text

_USUAL_SIZE = os.terminal_size((80, 24))
"""For a terminal that does not know its size."""
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]?|O.?)?")
"""What a key sends that is no letter, such as an arrow (ECMA-48, xterm)."""
_READ_BYTES = 64


class Terminated(BaseException):
    """The command is to end by a signal, once the terminal is given back."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_by(number: int) -> None:
    """End this process by a signal, as if nobody had handled that."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Screen:
    """The terminal of stdout, and of its keys where stdin is a terminal too, for the length of a ``with`` block."""

    def __init__(self) -> None:
        self._console = stdout_console()
        self._keys = sys.stdin.fileno() if has_person(sys.stdin) else None
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)

    def __enter__(self) -> Screen:
        if self._keys is not None:
            self._modes = termios.tcgetattr(self._keys)
        self._handle(signal.SIGWINCH, self._on_change)
        self._handle(signal.SIGCONT, self._on_continue)
        self._handle(signal.SIGTSTP, self._on_stop)
        self._handle(signal.SIGTERM, _on_end)
        self._handle(signal.SIGHUP, _on_end)
        try:
            self._take()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        # First: a signal that comes now must not take the terminal again.
        for number in (signal.SIGCONT, signal.SIGTSTP, signal.SIGWINCH):
            self._unhandle(number)
        self._give_back()
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._unhandle(number)
        os.close(self._woken)
        os.close(self._wake)

    def _handle(self, number: int, handler: Any) -> None:
        """Handle a signal, unless whoever has started the command wants it ignored, as ``nohup`` does."""
        before = signal.getsignal(number)
        if before != signal.SIG_IGN:
            signal.signal(number, handler)
            self._handlers[number] = before or signal.SIG_DFL

    def _unhandle(self, number: int) -> None:
        before = self._handlers.pop(number, None)
        if before is not None:
            signal.signal(number, before)

    # ---- the terminal

    def _take(self) -> None:
        if self._keys is not None:
            tty.setcbreak(self._keys)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _give_back(self) -> None:
        with suppress(OSError):  # the terminal is gone
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        if self._keys is not None and self._modes is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._modes)

    def size(self) -> os.terminal_size:
        """Columns and lines, as they are now."""
        with suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
            if found.columns and found.lines:
                return found
        return _USUAL_SIZE

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines, in the place of what was shown. What has no room on the terminal is not shown.

        Raises:
            OutputError: the terminal is gone.
        """
        from rich.console import Group
        from rich.control import Control
        from rich.screen import Screen as Whole

        self._console.size = self.size()
        try:
            self._console.control(Control.home())
            self._console.print(Whole(Group(*lines)), end="")
        except OSError as error:
            raise OutputError(error) from error

    # ---- signals

    def _on_change(self, number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # it is full: the command is woken all the same
            os.write(self._wake, b"!")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._give_back()
        previous = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here this process stands until it is continued.
        signal.signal(signal.SIGTSTP, previous)

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self._take()
        self._on_change(number, frame)

    # ---- keys

    def keys(self, timeout_s: float) -> str:
        """The letters that were typed, once some are; nothing once the time is over, or the terminal has changed.

        Keys that send more than a letter, as arrows do, are left out.

        Raises:
            EOFError: nobody can type anything any more.
        """
        readable = select.poll()
        readable.register(self._woken, select.POLLIN)
        if self._keys is not None:
            readable.register(self._keys, select.POLLIN)
        ready = [fd for fd, _ in readable.poll(max(0.0, timeout_s) * 1000)]
        if self._woken in ready:
            with suppress(BlockingIOError):
                os.read(self._woken, _READ_BYTES)
        if self._keys is None or self._keys not in ready:
            return ""
        return _letters(self._keys)


def _letters(fd: int) -> str:
    try:
        data = os.read(fd, _READ_BYTES)
    except OSError:
        data = b""
    if not data:
        raise EOFError
    text = data.decode("ascii", "replace")
    return _SEQUENCE.sub("", text)


def _on_end(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
