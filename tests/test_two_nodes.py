"""Two nodes on one root, each by a real mount of its own, whose locks the other one does not see; two pods alike."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.nodes import BOOT_IDS, MOUNTS, Node, two_nodes
from support.processes import PATIENCE_S
from support.ranks import KERNELS, PLUGIN
from support.recorded import COUNT, recorded

from gpucache.store.lookup import sound

pytestmark = [pytest.mark.compiles, pytest.mark.fuse]


class Two:
    """Two nodes, and the path at which both have the root."""

    def __init__(self, nodes: list[Node], root: Path) -> None:
        self.nodes = nodes
        self.root = root
        self.environ = {
            **os.environ,
            **PLUGIN,
            "GPUCACHE_DIR": str(root),
            "GPUCACHE_LOG": "warning",
            "TRITON_CACHE_DIR": f"{root}/triton/0",
        }

    def rank(self, number: int, **more: str) -> subprocess.Popen[str]:
        """A process on a node that compiles two kernels once it is told to."""
        process = self.nodes[number].start(KERNELS, 2, 90, env=self.environ | more)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "ready\n", process.communicate()
        return process


@pytest.fixture(params=MOUNTS)
def two(request: pytest.FixtureRequest, fuse: None, triton: None, tmp_path: Path) -> Iterator[Two]:
    with made(tmp_path, request.param, BOOT_IDS) as both:
        yield both


@pytest.fixture(params=MOUNTS)
def pods(request: pytest.FixtureRequest, fuse: None, triton: None, tmp_path: Path) -> Iterator[Two]:
    """Two pods of one node: one boot id, and a mount and a /dev/shm for each."""
    with made(tmp_path, request.param, BOOT_IDS[:1] * 2) as both:
        yield both


@contextmanager
def made(tmp_path: Path, kind: str, boot_ids: Sequence[str]) -> Iterator[Two]:
    with two_nodes(tmp_path, kind, boot_ids) as pair:
        yield Two(pair.nodes, pair.at / "root")


def ended(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate("\n", timeout=2 * PATIENCE_S)
    assert process.returncode == 0, err
    assert err == ""
    said: dict[str, object] = json.loads(out.splitlines()[-1])
    return said


def test_neither_takes_what_the_other_has_staged_and_both_publish(two: Two, tmp_path: Path) -> None:
    publish_while_the_other_compiles(two, tmp_path)


def test_neither_pod_takes_what_the_other_has_staged(pods: Two, tmp_path: Path) -> None:
    publish_while_the_other_compiles(pods, tmp_path)


def publish_while_the_other_compiles(two: Two, tmp_path: Path) -> None:
    """The second one sweeps, compiles and ends while the first one is in the middle of its compile."""
    slow = two.rank(0, KERNELS_AT="make_ptx:block")
    assert slow.stdin is not None
    assert slow.stdout is not None
    slow.stdin.write("\n")
    slow.stdin.flush()
    assert slow.stdout.readline() == "at make_ptx\n"
    quick = ended(two.rank(1))
    assert quick["compiled"] == 2
    first = ended(slow)
    assert first["digests"] == quick["digests"]
    for number in (0, 1):
        assert ended(two.rank(number))["compiled"] == 0
    found = list((tmp_path / "shared/root/gpucache/v1/store").glob("*/*"))
    assert len(found) == 2
    assert all(sound(str(path), True, 0.0) for path in found)


def test_both_at_once_leave_whole_entries(two: Two, tmp_path: Path) -> None:
    publish_at_once(two, tmp_path)


def test_both_pods_at_once_leave_whole_entries(pods: Two, tmp_path: Path) -> None:
    publish_at_once(pods, tmp_path)


def publish_at_once(two: Two, tmp_path: Path) -> None:
    ranks = [two.rank(number) for number in (0, 1)]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    said = [ended(rank) for rank in ranks]
    assert said[0]["digests"] == said[1]["digests"]
    for number in (0, 1):
        assert ended(two.rank(number))["compiled"] == 0
    found = list((tmp_path / "shared/root/gpucache/v1/store").glob("*/*"))
    assert len(found) == 2
    assert all(sound(str(path), True, 0.0) for path in found)


def test_doctor_tells_of_the_other_node(two: Two) -> None:
    provision = ("-m", "gpucache", "provision")
    for node in two.nodes:
        done = node.start(*provision, env=two.environ)
        _, err = done.communicate(timeout=PATIENCE_S)
        assert done.returncode == 0, err
    doctor = two.nodes[0].start("-m", "gpucache", "doctor", "--json", env=two.environ)
    out, err = doctor.communicate(timeout=PATIENCE_S)
    (finding,) = [
        finding for finding in json.loads(out)["findings"] if finding["code"] == "other-nodes"
    ]
    assert finding["fact"].startswith("node two use it too, and locks on its mount (fuse")


@pytest.mark.parametrize("kind", MOUNTS)
def test_two_pools_of_the_same_recipes_waste_time_at_most(
    kind: str, fuse: None, triton: None, tmp_path: Path
) -> None:
    """Locks reach one node: both may compile a kernel, and whoever comes later takes what is there."""
    with two_nodes(tmp_path, kind) as pair:
        program = recorded(tmp_path / "shared", tmp_path / "apart")
        root = pair.at / "gpucache"
        words = (
            "-m",
            "gpucache",
            "warm",
            pair.at / "kernels.jsonl",
            "--root",
            root,
            "-j1",
            "--json",
        )
        pools = [node.start(*words, env=program.environ) for node in pair.nodes]
        counts = []
        for pool in pools:
            out, err = pool.communicate(timeout=4 * PATIENCE_S)
            assert pool.returncode == 0, (out, err)
            counts.append(json.loads(out)["counts"])
        assert all(set(count) <= {"made", "there"} for count in counts)
        assert [sum(count.values()) for count in counts] == [COUNT, COUNT]
        assert program.stored() == program.keys()
        found = program.shared.glob("gpucache/gpucache/v1/store/*/*")
        assert all(sound(str(path), True, 0.0) for path in found)
    assert program.compiles() == 0
