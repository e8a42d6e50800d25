"""The pushers that tests have started."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from support.processes import PATIENCE_S


def pushers(root: Path) -> list[int]:
    """The numbers of the pushers of a root that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(root).encode() in words and any(b"remote.pusher" in word for word in words):
            found.append(int(path.parent.name))
    return found


def end_pushers(root: Path) -> None:
    """Kill the pushers of a root, and wait until they are gone."""
    end = time.monotonic() + PATIENCE_S
    while running := pushers(root):
        for pid in running:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < end
        time.sleep(0.01)
