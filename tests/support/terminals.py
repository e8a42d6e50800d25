"""Commands on a terminal of a given width, as a person sees them."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Mapping, Sequence

import pytest

from support.cli import MAIN
from support.processes import PATIENCE_S


class Terminal(io.TextIOWrapper):
    """A terminal inside this process that keeps what it is shown."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def seen(self) -> str:
        return self.buffer.getvalue().decode()


def put_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: str, encoding: str = "utf-8", columns: int = 60
) -> Terminal:
    """Put a terminal in the place of a standard stream."""
    terminal = Terminal(encoding)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm" if stream == "stderr" else "dumb")
    monkeypatch.setattr(sys, stream, terminal)
    return terminal


WIDTHS = (60, 80, 100, 200)
"""The widths at which tables are compared."""
COUNTED = {
    "hits": 123456789,
    "shared_hits": 2345678,
    "misses": 345678,
    "waits": 45678,
    "waited_s": 56789.5,
    "compiled_s": 6789012.5,
    "saved_s": 7890123.5,
}
"""Counters of a device directory, as wide as they become in years."""


def at_width(
    command: Sequence[object],
    columns: int,
    env: Mapping[str, str] | None = None,
    before: str = "",
) -> str:
    """All that a person sees of a command (its words behind ``gpucache``) on a terminal so many columns wide.

    ``before`` is code that runs in the command's process first. The terminal has neither colours nor bold letters
    (``TERM`` is ``dumb``, unless ``env`` says otherwise), so that what comes back are the very letters.
    """
    return seen_of([sys.executable, "-c", f"{before}\n{MAIN}", *map(str, command)], columns, env)


def seen_of(words: Sequence[str], columns: int = 80, env: Mapping[str, str] | None = None) -> str:
    """All that a person sees of any program on such a terminal, until the last process that has it open ends."""
    main, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = {**os.environ, "TERM": "dumb", **(env or {})}
    environ.pop("COLUMNS", None)
    started = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        env=environ,
    )
    os.close(secondary)
    try:
        return _read(main).decode().replace("\r\n", "\n")
    finally:
        os.close(main)
        started.kill()
        started.wait()


def _read(terminal: int) -> bytes:
    """All that is written to a terminal until nobody has it open any more."""
    seen = b""
    end = time.monotonic() + PATIENCE_S
    readable = select.poll()
    readable.register(terminal, select.POLLIN)
    while time.monotonic() < end:
        if not readable.poll(1000):
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            return seen
    raise TimeoutError(f"not done after {PATIENCE_S} s: {seen[-2000:]!r}")


def table_of(seen: str) -> list[str]:
    """The lines of a table as it was seen, without what was said beside it."""
    beside = ("note: ", "warning: ", "hint: ", "error: ")
    return [line for line in seen.splitlines() if not line.startswith(beside)]


def assert_fits(seen: str, columns: int) -> None:
    """Check that no line of a table is wider than its terminal."""
    for line in table_of(seen):
        assert len(line) <= columns, line


def assert_whole(seen: str, texts: Iterable[str]) -> None:
    """Check that each of these names or numbers stands in a table, uncut and on one line."""
    words = {word for line in table_of(seen) for word in line.split()}
    for text in texts:
        assert text in words, f"{text} is cut, or left out"


def seen_here(monkeypatch: pytest.MonkeyPatch, columns: int, *words: object) -> str:
    """As `at_width`, in this process and without what goes to stderr: what a person sees of stdout."""
    from gpucache.cli.main import main

    with monkeypatch.context() as patch:
        # A command adds a handler of the log, now or with the first line, for the stderr of this very test.
        patch.setattr(logging.getLogger("gpucache"), "handlers", [])
        patch.setattr("gpucache.log._before_first_line", [])
        terminal = put_terminal(patch, "stdout", columns=columns)
        main(list(map(str, words)))
    return terminal.seen
