"""What the faults of a remote cost a program that compiles real kernels: a limit, and never the program."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bad_servers import BEHAVIOURS, ESCAPES, SECRET, bad_server, hangs, slowly_has_nothing
from support.processes import PATIENCE_S
from support.ranks import Rank, together
from support.read_through import Entries, couriers, end_couriers

from gpucache.disk.files import make_below_root, make_directory
from gpucache.disk.spawning import start_beside
from gpucache.layout import paths
from gpucache.remote.ask import Reading, word_of
from gpucache.remote.breaker import Breaker
from gpucache.remote.meeting import Meeting
from gpucache.store.stats import totals

LIMIT_S = 1.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "WEBDAV_PASSWORD": SECRET,
    "REDISCLI_AUTH": SECRET,
}
URLS = {
    "s3": "s3://bucket/prefix?endpoint=http://127.0.0.1:{}&region=us-east-1",
    "webdav": "webdav://me@127.0.0.1:{}/there",
    "redis": "redis://me@127.0.0.1:{}/0",
}

Start = Callable[..., Rank]


@pytest.fixture
def start(ranks: Start, root: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a rank that asks the remote of a URL."""
    trust = Entries.signed(tmp_path).environ["GPUCACHE_TRUST_KEYS"]

    def begun(url: str, directory: str = "triton/0", count: int = 2, **environ: str) -> Rank:
        env = {
            "GPUCACHE_REMOTE": url,
            "GPUCACHE_TRUST_KEYS": trust,
            "GPUCACHE_REMOTE_TIMEOUT_S": str(LIMIT_S),
            "GPUCACHE_LOG": "debug",
            **CREDENTIALS,
            **environ,
        }
        if url:
            come_up(root, url, trust, {**os.environ, **env})
        return ranks(directory, count=count, env=env)

    yield begun
    end_couriers(root)


def until(happens: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def counted(root: Path) -> dict[str, float]:
    """The counters of all ranks together."""
    found: dict[str, float] = {}
    for values in totals(str(root)).values():
        for name, value in values.items():
            found[name] = found.get(name, 0) + value
    return found


def come_up(root: Path, url: str, trust: str, environ: dict[str, str]) -> None:
    """Have the courier there before a rank asks, whose limit a busy machine may take longer to start one."""
    locks = paths.ours(str(root), "locks")
    make_directory(str(root))
    make_below_root(locks)
    meeting = Meeting.of(locks, str(root), url, trust)
    reading = Reading(str(root), url, trust, LIMIT_S)
    if not os.path.lexists(f"{locks}/{meeting.socket}"):
        start_beside("gpucache.remote.courier", [word_of(reading, locks)], environ)
        until(lambda: os.path.lexists(f"{locks}/{meeting.socket}"))


def memory_bytes(pid: int) -> int:
    """The most memory that a process had at any time."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (most,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(most) * 1024


def assert_says_no_secret(rank: Rank) -> None:
    assert SECRET not in rank.err
    assert "\x1b" not in rank.err
    assert "\x07" not in rank.err


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_whatever_the_server_does_each_kernel_is_compiled(behaviour, start, root):
    with bad_server(BEHAVIOURS[behaviour]) as server:
        rank = start(URLS["s3"].format(server.port))
        said = together([rank])[0]
        assert server.requests, "it was asked"
        assert all(memory_bytes(pid) < 200 * 2**20 for pid in couriers(root))
    assert said["compiled"] == 2
    assert said["dangling"] == []
    found = counted(root)
    assert found["misses"] == 2
    assert found["remote_s"] < LIMIT_S + PATIENCE_S / 10
    assert "courier ended" not in rank.err
    assert_says_no_secret(rank)


@pytest.mark.parametrize("scheme", ["webdav", "redis"])
@pytest.mark.parametrize("behaviour", ["hangs", "403", "no HTTP", "sends without end"])
def test_other_services_fail_as_softly(behaviour, scheme, start, root):
    with bad_server(BEHAVIOURS[behaviour]) as server:
        rank = start(URLS[scheme].format(server.port))
        said = together([rank])[0]
    assert said["compiled"] == 2
    assert_says_no_secret(rank)
    assert counted(root)["remote_s"] < LIMIT_S + PATIENCE_S / 10


@pytest.mark.parametrize("scheme", URLS)
def test_a_port_that_nobody_listens_on_costs_no_more(scheme, start, root):
    with bad_server(hangs) as server:
        port = server.port
    rank = start(URLS[scheme].format(port))
    assert together([rank])[0]["compiled"] == 2
    assert counted(root)["remote_errors"] > 0
    assert counted(root)["remote_s"] < LIMIT_S + PATIENCE_S / 10
    assert_says_no_secret(rank)


def test_four_ranks_wait_for_a_server_that_hangs_no_longer_than_one(start, root):
    """A limit a node: 12 kernels in each rank, and each rank in turn the one that asks."""
    with bad_server(hangs) as server:
        url = URLS["s3"].format(server.port)
        started = [start(url, f"triton/{number}", 12) for number in range(4)]
        said = together(started)
        requests = len(server.requests)
    assert sum(one["compiled"] for one in said) == 12
    found = counted(root)
    # Ranks that ask at the same time wait side by side.
    assert found["remote_s"] < 4 * (LIMIT_S + PATIENCE_S / 10)
    assert requests <= 8, "and not one a kernel"
    for rank in started:
        assert_says_no_secret(rank)


def test_a_courier_that_is_killed_in_the_middle_is_replaced(start, root):
    """The rank that waits hears of it at once, and asks the next one."""
    with bad_server(hangs) as server:
        rank = start(
            URLS["s3"].format(server.port), count=1, GPUCACHE_REMOTE_TIMEOUT_S=str(PATIENCE_S)
        )
        rank.go()
        until(lambda: server.requests)
        (first,) = couriers(root)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(server.requests) == 2)
        (second,) = couriers(root)
        assert second != first
        os.kill(second, signal.SIGSTOP)  # and the time of the node is over once the server answers
        Breaker(next(map(str, root.glob("gpucache/v1/locks/remote-*.state")))).closed("timeout")
        said = rank.said()
    assert said["compiled"] == 1
    assert_says_no_secret(rank)


def test_a_rank_that_is_killed_while_it_asks_leaves_the_key_to_the_next(start):
    with bad_server(hangs) as server:
        url = URLS["s3"].format(server.port)
        rank = start(url, count=1, GPUCACHE_REMOTE_TIMEOUT_S=str(PATIENCE_S))
        rank.go()
        until(lambda: server.requests)
        rank.process.kill()
        next_one = start("", "triton/1", 1)
        assert together([next_one])[0]["compiled"] == 1


def test_ranks_take_from_the_remote_what_another_node_has_made(start, root, one_kernel, tmp_path):
    (tmp_path / "made").mkdir()
    remote = Entries.signed(tmp_path / "made")
    (key,) = remote.take_from(one_kernel.root)
    url = f"{remote.url}?trust={remote.signing.public_text}"
    slow = {"GPUCACHE_REMOTE_TIMEOUT_S": str(PATIENCE_S)}
    started = [start(url, f"triton/{number}", 1, **slow) for number in range(4)]
    said = together(started)
    assert [one["compiled"] for one in said] == [0, 0, 0, 0]
    assert {one["digests"]["0-90"] for one in said} == {one_kernel.digest}
    found = counted(root)
    assert (found["remote_hits"], found.get("misses", 0)) == (1, 0), "one request a node and key"
    assert (root / "triton" / "3" / key).is_dir()


def test_a_server_that_is_slow_and_has_nothing_costs_no_more_than_one_that_hangs(start, root):
    """Each of its answers comes in time."""
    with bad_server(slowly_has_nothing) as server:
        rank = start(URLS["s3"].format(server.port), count=12)
        said = together([rank])[0]
        requests = len(server.requests)
    assert said["compiled"] == 12
    assert requests <= 3
    assert counted(root)["remote_s"] < 2 * LIMIT_S + PATIENCE_S / 10


def test_a_server_that_hangs_is_told_once_with_what_follows(start, root):
    with bad_server(hangs) as server:
        url = URLS["s3"].format(server.port)
        rank = start(url, count=2, GPUCACHE_LOG="warning")
        together([rank])
    lines = [line for line in rank.err.splitlines() if "remote" in line]
    assert len(lines) == 1, rank.err
    assert "compiling here" in lines[0]
    assert ESCAPES not in lines[0]
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") is None
