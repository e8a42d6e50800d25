"""`gpucache run` where a remote is set: the courier comes up while the command starts, and keeps nothing from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.launches import kernel
from support.processes import PATIENCE_S
from support.read_through import VERSION, Entries, couriers, end_couriers

from gpucache.archive.signature import SigningKey
from gpucache.disk.processes import is_running, process_of

RUN = [sys.executable, "-m", "gpucache", "run", "--device", "0", "--"]
WAITS = [sys.executable, "-c", "print('up', flush=True); input()"]


@pytest.fixture
def environ(root: Path, tmp_path: Path, gpucache) -> Iterator[dict[str, str]]:
    """The environment of a node with one device that reads from a remote."""
    made = {**os.environ, "GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "1"}
    assert gpucache("provision", env=made).returncode == 0
    yield {**made, **Entries.signed(tmp_path).environ}
    end_couriers(root)


def until(happens: Callable[[], object]) -> object:
    end = time.monotonic() + PATIENCE_S
    while not (found := happens()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def started(environ: dict[str, str], command: list[str] = WAITS) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*RUN, *command], env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def test_the_courier_is_there_before_the_first_miss_and_goes_with_the_command(environ, root):
    with started(environ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "up\n"
        (pid,) = until(lambda: couriers(root))
        courier = process_of(pid)
        assert courier is not None
        assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
        assert is_running(courier)
        _, err = command.communicate("\n", timeout=PATIENCE_S)
        assert command.returncode == 0
        assert "remote" not in err
    until(lambda: not is_running(courier))


LAUNCH = """
import sys, types
sys.modules["triton"] = types.SimpleNamespace(__version__=sys.argv[2])
from gpucache.triton.manager import DeviceCacheManager
print(DeviceCacheManager(sys.argv[1]).get_group("add.json") is not None)
"""


def test_the_command_asks_the_courier_that_was_started_ahead(environ, root, tmp_path):
    """Both know it by the same name, from the environment of each."""
    key, files = kernel("asked")
    remote = Entries(tmp_path / "remote", SigningKey.read(str(tmp_path / "ci.key")))
    remote.add(key, files)
    plug_in = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
    patient = {"GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S)}
    command = [sys.executable, "-c", LAUNCH, key, VERSION]
    with started({**environ, **plug_in, **patient}, command) as rank:
        out, err = rank.communicate(timeout=PATIENCE_S)
    assert (out, rank.returncode) == ("True\n", 0), err
    assert len(list(root.glob("gpucache/v1/locks/remote-*.courier"))) == 1


def test_ranks_that_start_together_have_one(environ, root):
    ranks = [started(environ) for _ in range(4)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "up\n"
    until(lambda: couriers(root))
    assert len(couriers(root)) == 1
    for rank in ranks:
        rank.communicate("\n", timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCACHE_REMOTE", ""),
        ("GPUCACHE_REMOTE", "nonsense"),
        ("GPUCACHE_TRUST_KEYS", ""),
        ("GPUCACHE_DISABLE", "1"),
        ("GPUCACHE_SHARE", "0"),
    ],
)
def test_where_nothing_would_be_asked_none_is_started(environ, root, name, value):
    locks = root / "gpucache/v1/locks"
    done = subprocess.run(
        [*RUN, "true"], env={**environ, name: value}, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr
    assert not list(locks.glob("remote-*"))


def test_a_root_that_cannot_be_written_keeps_no_command(environ, root):
    locks = root / "gpucache/v1/locks"
    locks.rmdir() if not any(locks.iterdir()) else [path.unlink() for path in locks.iterdir()]
    if locks.exists():
        locks.rmdir()
    locks.touch()
    done = subprocess.run([*RUN, "true"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
