"""A real terminal: a tmux server of the test's own, in which a command runs, and what a person sees of that."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import PATIENCE_S


class Tmux:
    """One window of a tmux server, with a shell in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def __call__(self, *words: str) -> str:
        command = ["tmux", "-f", "/dev/null", "-S", str(self._socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout

    def type(self, *keys: str) -> None:
        """Type keys, as tmux names them: ``q``, ``C-z``, ``Enter``, or words."""
        self("send-keys", "-t", "w", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self("resize-window", "-t", "w", "-x", str(columns), "-y", str(lines))

    @property
    def seen(self) -> str:
        """What stands on the terminal; blanks at the ends of lines are left out."""
        return self("capture-pane", "-p", "-t", "w")

    @property
    def is_alternate(self) -> bool:
        """Whether the terminal shows the screen that a command has taken for itself."""
        return self("display-message", "-p", "-t", "w", "#{alternate_on}").strip() == "1"

    @property
    def has_cursor(self) -> bool:
        return self("display-message", "-p", "-t", "w", "#{cursor_flag}").strip() == "1"

    def until_the_shell_reads(self) -> None:
        """Wait until no command of the shell runs in the foreground: what is typed before is a command's, or lost."""
        end = time.monotonic() + PATIENCE_S
        while self("display-message", "-p", "-t", "w", "#{pane_current_command}").strip() != "sh":
            assert time.monotonic() < end, self.seen

    def until(self, *texts: str) -> str:
        """What stands on the terminal once all these texts do."""
        end = time.monotonic() + PATIENCE_S
        while True:
            seen = self.seen
            if all(text in seen for text in texts):
                return seen
            assert time.monotonic() < end, f"{texts} never came; there is:\n{seen}"


@contextmanager
def tmux(env: Mapping[str, str], columns: int = 80, lines: int = 24) -> Iterator[Tmux]:
    """A terminal with a shell that has this environment, whose prompt is ``$``."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    place = Path(tempfile.mkdtemp(prefix="tmux-"))  # the path of a socket is short
    started = Tmux(place / "s")
    size = ("-x", str(columns), "-y", str(lines))
    shell = ["sh", "-i"]
    command = ["tmux", "-f", "/dev/null", "-S", str(place / "s"), "new-session", "-d", "-s", "w"]
    environ = {**os.environ, **env, "PS1": "$ ", "TERM": "xterm-256color", "ENV": ""}
    try:
        subprocess.run([*command, *size, *shell], env=environ, check=True)
        started.until("$")
        yield started
    finally:
        subprocess.run(
            ["tmux", "-S", str(place / "s"), "kill-server"], stderr=subprocess.DEVNULL, check=False
        )
        shutil.rmtree(place, ignore_errors=True)


def typed(words: Sequence[object]) -> str:
    """Words as they are typed into a shell."""
    import shlex

    return shlex.join(map(str, words))
