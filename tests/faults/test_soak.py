"""Everything at once, for a while: launches on two devices, removals, repairs, and kills at any moment.

``--soak 3600`` makes an hour of it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest
from support.faults import built
from support.processes import PATIENCE_S
from support.warm import WarmProcess, WarmPython

pytestmark = [pytest.mark.compiles, pytest.mark.faults]

LAUNCHERS = 4
LIFE_S = 4.0
COMMANDS = [
    ("prune", "--max-entries", "4", "--grace", "2s", "--yes"),
    ("verify",),
    ("prune", "--max-entries", "2", "--keep-binaries", "--grace", "2s", "--yes"),
    ("stats",),
    ("clean", "--yes"),
    ("verify", "--repair"),
    ("ls",),
    ("prune", "--max-size", "1", "--grace", "2s", "--yes"),
]


class Soak:
    """Launchers that end and are killed, and are replaced; and the figures of all of them."""

    def __init__(self, base: Path, python: WarmPython, library: Path, seed: int) -> None:
        self.base, self.python, self.draw = base, python, random.Random(seed)
        self.stop = base / "stop"
        self.environ = {
            "HOME": "/nowhere",
            "PATH": os.environ["PATH"],
            "TMPDIR": str(base),
            "FAULTS_LIBRARY": str(library),
            "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
            "GPUCACHE_DIR": str(base / "root"),
            "GPUCACHE_STAMP_S": "1",
            "GPUCACHE_MAX_SIZE": "60kB",  # a third of the kernels
        }
        self.started = self.kills = self.commands = 0
        self.wrong: list[str] = []

    def start(self, *words: object) -> WarmProcess:
        return self.python.start("from support import soak; soak.main()", *words, env=self.environ)

    def ended(self, process: WarmProcess, what: str, allowed: tuple[int, ...] = (0,)) -> str:
        """Wait for a process; what it said on stdout. An end of another kind is wrong."""
        try:
            out, err = process.communicate("", 2 * PATIENCE_S)
        finally:
            process.end()
        if process.returncode not in allowed or "Traceback" in err:
            self.wrong.append(f"{what} ended with {process.returncode}: {err[-3000:]}")
        return out

    def launcher(self) -> None:
        """Launchers one after the other, each killed at a moment of its life, until the end."""
        while not self.stop.exists() and not self.wrong:
            self.started += 1
            number, killed = self.started, self.draw.random() < 0.7
            tally = self.base / f"tally-{number}"
            process = self.start("launches", number, self.stop, LIFE_S, tally)
            due = time.monotonic() + self.draw.uniform(0, LIFE_S)
            while killed and time.monotonic() < due and process.poll() is None:
                self.stop_event.wait(0.01)
            if killed and process.poll() is None:
                process.kill()
                self.kills += 1
                self.ended(process, "a launcher", (-9,))
            else:
                self.ended(process, "a launcher")

    def upkeep(self) -> None:
        """The commands one after the other, one in three killed, until the end."""
        while not self.stop.exists() and not self.wrong:
            words = COMMANDS[self.commands % len(COMMANDS)]
            self.commands += 1
            process = self.start("command", *words)
            if self.draw.random() < 0.3:
                self.stop_event.wait(self.draw.uniform(0, 0.1))
                process.kill()
                self.kills += 1
                self.ended(process, str(words), (0, 1, -9))
            else:
                self.ended(process, str(words), (0, 1))

    def run(self, seconds: float) -> None:
        self.stop_event = threading.Event()
        threads = [threading.Thread(target=self.launcher) for _ in range(LAUNCHERS)]
        threads.append(threading.Thread(target=self.upkeep))
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.wrong:
            self.stop_event.wait(0.1)
        self.stop.touch()
        for thread in threads:
            thread.join()

    @property
    def tally(self) -> str:
        """A letter for each launch of all launchers: h for a hit, c for a compile."""
        return "".join(path.read_text() for path in self.base.glob("tally-*"))


@pytest.fixture
def soak(tmp_path: Path, soaking: WarmPython, request: pytest.FixtureRequest) -> Soak:
    seed = int(request.config.getoption("--faults-seed"))
    return Soak(tmp_path, soaking, built(tmp_path), seed)


def test_launches_removals_repairs_and_kills_at_once(soak, request):
    """Every byte of every launch is right, nothing hangs, no command fails, and all is whole in the end."""
    soak.ended(soak.start("command", "provision"), "provision")
    soak.run(request.config.getoption("--soak"))
    tally = soak.tally
    said = f"{len(tally)} launches ({tally.count('c')} compiles), {soak.kills} kills, "
    print(said + f"{soak.commands} commands, {soak.started} launchers, {len(soak.wrong)} wrong")
    assert not soak.wrong, soak.wrong[0]
    soak.ended(soak.start("all"), "the first launches after it")
    assert soak.ended(soak.start("all"), "the second launches after it") == "0\n"
    soak.ended(soak.start("command", "verify", "--repair"), "verify --repair", (0, 1))
    soak.ended(soak.start("command", "verify"), "verify")
    assert not soak.wrong, soak.wrong[0]
    assert tally.count("h") > 100, "or it was no soak"
    assert min(tally.count("c"), soak.kills, soak.commands) > 5, "or it was no soak"
