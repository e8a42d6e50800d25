"""The units of docs/systemd.md are units, and their commands do what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.metrics import of, series
from support.processes import PATIENCE_S
from support.snippets import HERE
from tree import make

from gpucache.layout.paths import ours
from gpucache.store.stats import Stats

UNITS = HERE / "docs/examples/systemd"
PAGE = HERE / "docs/systemd.md"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TIMERS = sorted(path.name for path in UNITS.glob("*.timer"))
INSTALLED = ("/opt/gpucache/bin/gpucache", "%h/.local/bin/gpucache")
"""Where the units have the command."""


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("needs systemd-analyze")
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a command that is there: verified is also that what they start can be executed."""
    command = tmp_path / "gpucache"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpucache "$@"\n')
    command.chmod(0o755)
    copies = tmp_path / "units"
    copies.mkdir()
    for path in UNITS.iterdir():
        text = path.read_text()
        for installed in INSTALLED:
            text = text.replace(installed, str(command))
        (copies / path.name).write_text(text)
    return copies


def verified(analyze: str, path: Path) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze` says of a unit and of those that belong to it; of a user's own as such."""
    whose = ["--user"] if "-own" in path.name else []
    environ = {**os.environ, "HOME": str(path.parent), "XDG_RUNTIME_DIR": str(path.parent)}
    return subprocess.run(
        [analyze, *whose, "verify", "--man=no", path],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("name", [*SERVICES, *TIMERS])
def test_every_unit_is_one_for_systemd(analyze: str, units: Path, name: str) -> None:
    done = verified(analyze, units / name)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_with_a_mistake_would_be_found(analyze: str, units: Path) -> None:
    for old, new in (("Nice=19", "Niece=19"), ("TimeoutStartSec=2h", "TimeoutStartSec=soon")):
        path = units / "gpucache-prune.service"
        text = path.read_text()
        path.write_text(text.replace(old, new))
        assert verified(analyze, path).stderr
        path.write_text(text)


@pytest.mark.parametrize("name", TIMERS)
def test_every_timer_starts_a_service_that_is_there(name: str) -> None:
    assert name.replace(".timer", ".service") in SERVICES
    assert "WantedBy=timers.target" in (UNITS / name).read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_shares_the_directories_of_locks_with_the_jobs(name: str) -> None:
    settings = re.findall(r"^(\w+)=", (UNITS / name).read_text(), re.MULTILINE)
    apart = {"PrivateTmp", "PrivateIPC", "RootDirectory", "RootImage", "DynamicUser"}
    assert apart.isdisjoint(settings)


def test_every_unit_is_on_the_page() -> None:
    named = re.findall(r"\(examples/systemd/([^)]+)\)", PAGE.read_text())
    assert sorted(named) == sorted([*SERVICES, *TIMERS])


# ---- what they do


def words_of(name: str, specifiers: dict[str, str]) -> list[str]:
    """The words that a service executes, with systemd's specifiers replaced."""
    (line,) = re.findall(r"^ExecStart=(.+)$", (UNITS / name).read_text(), re.MULTILINE)
    for specifier, value in specifiers.items():
        line = line.replace(specifier, value)
    assert "%" not in line
    return shlex.split(line)[1:]


def started(words: list[str], scratch: Path) -> subprocess.CompletedProcess[str]:
    """The command of a service, as systemd starts it: almost without variables, and without a terminal."""
    below = [word.replace("/scratch", str(scratch)) for word in words]
    return subprocess.run(
        [sys.executable, "-m", "gpucache", *below],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def old_root(root: Path) -> None:
    """A root with six kernels, of which five were used last before 40 days."""
    keys = make(str(root), 6, 1)
    long_ago = time.time() - 40 * 86400
    for key in keys[:5]:
        for path in root.rglob("*"):
            if key in path.parts:
                os.utime(path, (long_ago, long_ago))


def entries(root: Path) -> int:
    return len(list((root / "triton/0").iterdir()))


def test_the_service_of_a_user_prunes_what_is_old_in_his_root(tmp_path: Path) -> None:
    root = tmp_path / "scratch/alice/kernels"
    old_root(root)
    words = words_of("gpucache-prune-own.service", {"%h": "/home/alice", "%u": "alice"})
    done = started(words, tmp_path / "scratch")
    assert done.returncode == 0, done.stderr
    assert entries(root) == 1


def test_the_service_of_metrics_writes_what_was_counted_and_what_the_one_of_doctor_has_found(
    tmp_path: Path,
) -> None:
    root = tmp_path / "scratch/kernels"
    make(str(root), 2, 1)
    Stats(ours(str(root), "stats"), "0").add("hits", 5, now=True)
    examined = started(words_of("gpucache-doctor.service", {}), tmp_path / "scratch")
    assert examined.returncode in (0, 1), examined.stderr
    collected = {"/var/lib/prometheus/node-exporter": str(tmp_path)}
    done = started(words_of("gpucache-metrics.service", collected), tmp_path / "scratch")
    assert done.returncode == 0, done.stderr
    found = series((tmp_path / "gpucache.prom").read_text())
    assert of(found, "gpucache_hits_total", directory="0", level="own") == 5
    assert of(found, "gpucache_examined_timestamp_seconds", command="doctor") > 0


@pytest.mark.root
def test_the_service_of_root_prunes_what_is_old_in_the_roots_of_all(
    everyones: Path, as_root: None
) -> None:
    for uid, user in ((54321, "alice"), (54322, "bob")):
        home = everyones / "scratch" / user
        old_root(home / "kernels")
        for path in (home, *home.rglob("*")):
            os.lchown(path, uid, uid)
    done = started(words_of("gpucache-prune.service", {}), everyones / "scratch")
    assert done.returncode == 0, done.stderr
    left = [entries(everyones / f"scratch/{user}/kernels") for user in ("alice", "bob")]
    assert left == [1, 1]
