"""Two writers and ten readers, each a node with a root of its own, on one remote: nothing is lost, whatever they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.launches import kernel
from support.processes import PATIENCE_S, python_path
from support.pushers import end_pushers
from support.read_through import end_couriers
from support.remotes import KINDS, Place
from support.wrong_clock import wrong_clock

from gpucache.archive.signature import make_key
from gpucache.disk import files
from gpucache.layout import paths
from gpucache.remote.object_names import entry_object
from gpucache.remote.opening import open_remote
from gpucache.remote.pusher import push_waiting
from gpucache.remote.shared_directory import UNFINISHED
from gpucache.remote.url import RemoteUrl
from gpucache.store.stats import totals

TEN_YEARS_S = 10 * 365 * 86400
PER_WRITER, SHARED = 6, 4
READERS = 10

LAUNCHES = """
import json, sys, types
sys.modules["triton"] = types.SimpleNamespace(__version__="3.9.0")
from gpucache.remote import write_behind
write_behind.LEAST_COMPILE_S = 0
from support.launches import kernel, launched
print("ready", flush=True)
sys.stdin.readline()
compiled = 0
for seed in sys.argv[1:]:
    key, files = kernel(seed)
    hit, contents = launched(key, files)
    assert contents == files, seed
    compiled += not hit
print(json.dumps(compiled), flush=True)
"""
"""Launches the kernels of these seeds, once all processes are ready, and says how many were compiled."""


class Node(NamedTuple):
    """A machine: a root, and the environment of its processes."""

    root: Path
    environ: dict[str, str]

    def start(self, *seeds: str, **changed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHES, *seeds],
            env={**self.environ, **changed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def waiting(self) -> list[str]:
        return [path.name for path in self.root.glob("gpucache/v1/outbox/*/*")]

    @property
    def counted(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for values in totals(str(self.root)).values():
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value
        return sums


class Fleet:
    """Nodes that share a remote and nothing else."""

    def __init__(self, tmp_path: Path, place: Place) -> None:
        self.tmp_path = tmp_path
        self.place = place
        self.signing = make_key("ci", str(tmp_path / "ci.key"))
        self.nodes: list[Node] = []

    def node(self, mode: str, **changed: str) -> Node:
        root = self.tmp_path / f"node{len(self.nodes)}"
        environ = {
            **{name: value for name, value in os.environ.items() if "GPUCACHE" not in name},
            **self.place.environ,
            "PYTHONPATH": python_path("tests"),
            "GPUCACHE_DIR": str(root),
            "TRITON_CACHE_DIR": str(root / "triton/0"),
            "GPUCACHE_REMOTE": self.place.url(mode),
            "GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S),
            "GPUCACHE_TRUST_KEYS": self.signing.public_text,
            "GPUCACHE_SIGN_KEY": str(self.tmp_path / "ci.key") if mode == "write" else "",
        }
        made = Node(root, {**environ, **changed})
        self.nodes.append(made)
        return made

    def end(self) -> None:
        for node in self.nodes:
            end_couriers(node.root)
            end_pushers(node.root)


_SERVED = [pytest.param(kind, marks=pytest.mark.servers) for kind in ("s3", "redis")]


@pytest.fixture(params=["file", *_SERVED])
def fleet(request, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path, KINDS[request.param](request))
    yield made
    made.end()


def together(*processes: subprocess.Popen[str]) -> list[int]:
    """Let processes begin at once, and wait for them; how many kernels each of them has compiled."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    compiled = []
    for process in processes:
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        compiled.append(json.loads(said))
    return compiled


def until_pushed(node: Node) -> None:
    end = time.monotonic() + PATIENCE_S
    while node.waiting:
        assert time.monotonic() < end, node.waiting
        time.sleep(0.05)


def seeds(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


def test_two_writers_and_ten_readers_lose_nothing_whatever_one_clock_says(fleet, tmp_path):
    """One writer and one reader are ten years ahead, or as far as a service bears. What both compile is put once."""
    ahead_s = 600 if "AWS_ACCESS_KEY_ID" in fleet.place.environ else TEN_YEARS_S
    wrong = wrong_clock(tmp_path, ahead_s)
    writers = [fleet.node("write"), fleet.node("write", **wrong)]
    readers = [fleet.node("read", **(wrong if number == 0 else {})) for number in range(READERS)]
    both = seeds("both", SHARED)
    given = [seeds("one", PER_WRITER) + both, seeds("two", PER_WRITER) + both[::-1]]
    everything = list(dict.fromkeys([*given[0], *given[1]]))
    processes = [node.start(*words) for node, words in zip(writers, given, strict=True)]
    processes += [node.start(*everything) for node in readers]
    compiled = together(*processes)
    assert compiled[0] + compiled[1] >= len(everything)
    for writer in writers:
        until_pushed(writer)
    last = fleet.node("read")
    assert together(last.start(*everything)) == [0]
    assert last.counted["remote_hits"] == len(everything)
    pushed = sum(writer.counted.get("pushed", 0) for writer in writers)
    can = fleet.place.open().can
    if "put-if-absent" in can:
        assert pushed == len(everything)
    assert sum(writer.counted.get("push_errors", 0) for writer in writers) == 0
    for node in (*readers, last):
        assert not node.counted.get("remote_bad"), "whoever reads sees a whole entry or none"
        assert not node.counted.get("remote_errors")


@pytest.mark.servers
def test_what_a_service_refuses_for_a_wrong_clock_waits_until_that_is_right(
    request, tmp_path, monkeypatch
):
    """S3 refuses what is signed at a time that is long over, or to come: the markers stay."""
    fleet = Fleet(tmp_path, KINDS["s3"](request))
    writer = fleet.node("write", **wrong_clock(tmp_path, TEN_YEARS_S))
    try:
        assert together(writer.start(*seeds("one", 3))) == [3]
        end = time.monotonic() + PATIENCE_S
        while not writer.counted.get("push_errors"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert len(writer.waiting) == 3
        end_pushers(writer.root)
        for path in Path(paths.ours(str(writer.root), "locks")).glob("remote-*.push"):
            path.unlink()  # the time is over in which it is left alone
        right = {name: value for name, value in writer.environ.items() if name != "LD_PRELOAD"}
        push_waiting(str(writer.root), right)
        assert writer.waiting == []
        assert together(fleet.node("read").start(*seeds("one", 3))) == [0]
    finally:
        fleet.end()


def test_a_writer_whose_clock_is_ahead_sweeps_no_put_of_another(tmp_path, monkeypatch):
    """In a directory that nodes share, an unfinished put is judged by the clock of the disk."""
    shared = tmp_path / "shared"
    name = entry_object("3.9.0", kernel("first")[0])
    other = shared / Path(name).parent / f"{UNFINISHED}other"
    other.parent.mkdir(parents=True)
    other.write_text("half of it")
    (tmp_path / "pack").write_text("pack")
    remote = open_remote(RemoteUrl.parse(f"file://{shared}?mode=write"), {})
    ahead = time.time() + TEN_YEARS_S
    monkeypatch.setattr(files.time, "time", lambda: ahead)
    assert remote.put_new(name, str(tmp_path / "pack"))
    assert other.exists()
    os.utime(other, (1, 1))
    assert remote.put_new(name, str(tmp_path / "pack"), replace=True)
    assert not other.exists()
