"""`gpucache run` under `GPUCACHE_PACK`: a pack comes while the program starts, once a node, and never in its way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.bad_servers import BEHAVIOURS, SECRET, bad_server
from support.processes import PATIENCE_S, python_path
from support.pulled_packs import Packs, end_pulls, pull_files, until_pulled
from support.read_through import end_couriers
from support.slow_redis import SlowRedis, slow_redis

from gpucache.disk.door import HOLDER_BYTES
from gpucache.remote.pull_files import remarks
from gpucache.remote.pulls import Pull
from gpucache.remote.url import RemoteUrl
from gpucache.transfer import prefetch

SEEDS = [f"kernel {number}" for number in range(12)]
_DRAW = random.Random(0)
LARGE = [_DRAW.randbytes(1000).hex() for _ in range(12)]
"""Each makes 200 KB, of which zstd leaves one: the statement comes out before half of the pack is there."""
PROGRAM = """
import json, sys, time
from support.launches import kernel, launched
began = time.monotonic()
hits = [launched(*kernel(seed))[0] for seed in json.loads(sys.argv[1])]
print(json.dumps({"hits": sum(hits), "compiled": hits.count(False), "seconds": time.monotonic() - began}))
"""
"""Launches kernels, with an emulated Triton; prints how many were hits."""
BEAT = """
import os
from pathlib import Path
from support.pulled_packs import pull_files
for path in pull_files(Path(os.environ["GPUCACHE_DIR"])):
    os.utime(path)
"""
"""Before a program: as if something of the pull had come just now, however long the program took to start."""
GPUCACHE = [sys.executable, "-m", "gpucache"]
TESTS = Path(__file__).parent


@pytest.fixture
def remote(tmp_path: Path) -> Packs:
    return Packs.signed(tmp_path)


@pytest.fixture
def environ(root: Path, remote: Packs, gpucache: Callable[..., object]) -> Iterator[dict[str, str]]:
    """The environment of a node with two devices, whose root is there and empty."""
    made = {
        **os.environ,
        "GPUCACHE_DIR": str(root),
        "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
        "PYTHONPATH": python_path(TESTS),
        **remote.environ,
    }
    gpucache("provision", env=made)
    yield made
    end_pulls(root)
    end_couriers(root)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start the program under `gpucache run`, which pulls a pack."""
    started = []

    def begin(
        seeds: list[str] = SEEDS, pack: str = "llama", before: str = "", **more: str
    ) -> subprocess.Popen[str]:
        program = before + PROGRAM
        words = ["run", "--device", "0", "--", sys.executable, "-c", program, json.dumps(seeds)]
        if "LOCAL_RANK" in more:
            del words[1:3]
        process = subprocess.Popen(
            [*GPUCACHE, *words],
            env={**environ, "GPUCACHE_PACK": pack, **more},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, float], str]:
    """What the program has said, and what was said on stderr; it ends well."""
    out, err = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, err
    return json.loads(out), err


def brought(root: Path) -> int:
    """How many pulls have brought something."""
    return len(list(root.glob("gpucache/v1/pulled/*")))


class TestAllIsThere:
    @pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
    def test_nothing_is_compiled_whatever_is_asked_for_first(self, order, remote, start):
        remote.put("llama", SEEDS)
        seeds = list(SEEDS)
        if order == "backwards":
            seeds.reverse()
        if order == "shuffled":
            random.Random(0).shuffle(seeds)
        said, told = ended(start(seeds))
        assert said["compiled"] == 0
        assert f" pulls llama from {remote.url}\n" in told

    def test_a_program_that_asks_before_the_remote_has_answered_waits_and_compiles_nothing(
        self, remote, start
    ):
        """The file of the pull is there before the program is, and says that keys are to come."""
        with slow_redis(remote.packed("llama", SEEDS), gate=0) as server:
            process = start(GPUCACHE_REMOTE=server.url)
            assert server.reached.wait(PATIENCE_S)
            with pytest.raises(
                subprocess.TimeoutExpired
            ):  # not as long as it takes to compile all of them
                process.wait(1.5)
            server.open()
            said, _ = ended(process)
        assert said["compiled"] == 0

    def test_ranks_that_start_together_compile_nothing_and_one_process_pulls(
        self, remote, root, start
    ):
        remote.put("llama", SEEDS)
        ranks = [
            start(SEEDS[rank:] + SEEDS[:rank], LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
            for rank in range(2)
        ]
        said = [ended(rank) for rank in ranks]
        assert [one["compiled"] for one, _ in said] == [0, 0]
        # By whoever is first: "process 4711 pulls", or, where another has started that, "another process pulls".
        assert sum(told.count(" pulls llama from ") for _, told in said) == 1
        assert brought(root) == 1

    def test_a_rank_that_comes_later_asks_for_nothing_again(self, remote, root, start):
        path = remote.put("llama", SEEDS)
        ended(start(LOCAL_RANK="0", LOCAL_WORLD_SIZE="2"))
        until_pulled(root)
        path.unlink()
        said, _ = ended(start(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"))
        assert said["compiled"] == 0
        until_pulled(root)
        assert remarks(str(root / "gpucache/v1/locks")) == []

    def test_nothing_is_left_of_what_was_staged(self, remote, root, start):
        remote.put("llama", SEEDS)
        ended(start())
        until_pulled(root)
        assert list((root / "gpucache/v1/tmp").iterdir()) == []

    def test_two_packs_come_at_once(self, remote, root, start):
        remote.put("llama", SEEDS[:6])
        remote.put("mistral", SEEDS[6:])
        said, _ = ended(start(pack="llama,mistral"))
        assert said["compiled"] == 0
        assert brought(root) == 2

    def test_a_kernel_of_no_pack_is_compiled(self, remote, start):
        remote.put("llama", SEEDS)
        said, _ = ended(start([*SEEDS, "another"]))
        assert said["compiled"] == 1

    def test_kernels_for_other_devices_than_those_on_record_are_left_out(
        self, remote, root, start, tmp_path
    ):
        remote.put("llama", SEEDS)  # sm_90
        other = tmp_path / "other"
        ended(start([], GPUCACHE_FAKE_DEVICES="1xA100:8.0", GPUCACHE_DIR=str(other)))
        until_pulled(other)
        (remark,) = remarks(str(other / "gpucache/v1/locks"))
        assert remark.kind == "unfit"
        assert "none of its 12 entries is for this node (sm_90)" in remark.text
        assert brought(other) == 0
        end_couriers(other)


@pytest.mark.torch
@pytest.mark.parametrize("how", ["outer", "inner", "both"])
def test_under_torchrun_one_process_pulls_and_no_rank_compiles(
    how, remote, root, environ, tmp_path
):
    """`gpucache run` in front of torchrun, in each rank, or both; of both the inner one finds that all is there."""
    remote.put("llama", SEEDS)
    run = [*GPUCACHE, "run", "--"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    words = [*torchrun, "--nproc-per-node=2"]
    words = [*run, *words] if how != "inner" else words
    words = [*words, *run] if how != "outer" else words
    (tmp_path / "program.py").write_text(PROGRAM)
    words += [sys.executable, str(tmp_path / "program.py"), json.dumps(SEEDS)]
    done = subprocess.run(
        words,
        env={**environ, "GPUCACHE_PACK": "llama"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["compiled"] for one in said] == [0, 0]
    until_pulled(root)
    assert brought(root) == 1


class TestTheProgramIsNotInItsWay:
    def test_it_has_nothing_of_the_puller_and_starts_before_the_pack_is_there(
        self, remote, root, start
    ):
        """No child, no descriptor that stays open: the program ends, and its output with it, while the pull goes on."""
        with slow_redis(remote.packed("llama", SEEDS), gate=100) as server:
            said, _ = ended(start([], GPUCACHE_REMOTE=server.url))
            assert said["compiled"] == 0
            assert len(pull_files(root)) == 1
            assert server.reached.wait(PATIENCE_S)
            pid = json.loads(pull_files(root)[0].read_bytes()[:HOLDER_BYTES])["pid"]
            assert os.readlink(f"/proc/{pid}/cwd") == "/", "that of a job is removed after it"
            server.open()
            until_pulled(root)
        assert brought(root) == 1

    @pytest.mark.parametrize(
        ("more", "why"),
        [
            ({"GPUCACHE_REMOTE": ""}, "no remote is named"),
            ({"GPUCACHE_REMOTE": "nonsense"}, "GPUCACHE_REMOTE='nonsense' is not a URL"),
            ({"GPUCACHE_TRUST_KEYS": ""}, "nobody is trusted"),
            ({"GPUCACHE_TRUST_KEYS": "ci:short"}, "the key of ci is no base64url"),
            ({"GPUCACHE_PACK": "../x"}, "GPUCACHE_PACK='../x' is not a comma-separated list"),
            ({"GPUCACHE_PACK": ","}, "GPUCACHE_PACK=',' is not a comma-separated list"),
        ],
    )
    def test_what_makes_no_sense_is_told_in_one_line(self, more, why, start):
        pack = more.pop("GPUCACHE_PACK", "llama") if "GPUCACHE_PACK" in more else "llama"
        said, told = ended(start(SEEDS[:1], pack=pack, **more))
        assert said["compiled"] == 1
        (line,) = [line for line in told.splitlines() if "GPUCACHE_PACK: nothing is pulled" in line]
        assert why in line

    def test_disabled_it_does_nothing(self, remote, root, start):
        remote.put("llama", SEEDS)
        process = start([], GPUCACHE_DISABLE="1")
        ended(process)
        assert pull_files(root) == []

    @pytest.mark.parametrize("how", ["--no-plugin", "GPUCACHE_SHARE"])
    def test_without_the_plugin_nothing_is_pulled_and_a_note_says_so(
        self, how, remote, root, environ, gpucache
    ):
        remote.put("llama", SEEDS)
        words = ["--no-plugin"] if how == "--no-plugin" else []
        more = {"GPUCACHE_PACK": "llama"} | ({} if words else {how: "0"})
        done = gpucache("run", *words, "--", "true", env={**environ, **more})
        assert done.returncode == 0
        assert "note: GPUCACHE_PACK: nothing is pulled, as nothing would use it" in done.stderr
        assert pull_files(root) == []

    def test_a_pack_that_is_not_there_is_told_by_those_who_compile(self, start):
        said, told = ended(start(SEEDS[:2]))
        assert said["compiled"] == 2
        assert "has no v1/packs/llama" in told

    def test_an_older_pack_than_one_that_was_seen_is_taken_and_told(self, remote, root, start):
        for number in (7, 6):
            remote.put("llama", SEEDS[:number], number=number)
            said, _ = ended(start(SEEDS[:number]))
            assert said["compiled"] == 0
            until_pulled(root)
        (remark,) = remarks(str(root / "gpucache/v1/locks"))
        assert remark.kind == "older"
        _, told = ended(start(["another"]))
        assert "it is number 6, and number 7 was seen here before: an older pack" in told

    def test_what_went_wrong_the_last_time_is_told_by_the_next_run(self, remote, root, start):
        ended(start([]))
        until_pulled(root)
        remote.put("llama", SEEDS)
        said, told = ended(start(SEEDS))
        assert said["compiled"] == 0
        assert "warning: GPUCACHE_PACK: the last time the pull of llama from " in told
        assert "has no v1/packs/llama" in told
        until_pulled(root)
        assert pull_files(root) == []

    def test_what_goes_wrong_as_another_rank_begins_stays_to_be_told(
        self, environ, remote, root, monkeypatch
    ):
        url = RemoteUrl.parse(remote.url)
        words = (url.shown, "llama", "ahead")
        first = Pull.begin(str(root), words, "the pull of llama")
        begin = Pull.begin

        def begin_after_the_first(*words: object) -> Pull | None:
            first.leave("failed", "no answer")
            return begin(*words)

        monkeypatch.setattr(Pull, "begin", begin_after_the_first)
        monkeypatch.setattr(prefetch, "first_in_job", lambda *_: False)
        (one,) = prefetch.pull_ahead(["llama"], url, str(root), environ, is_rank=True)
        assert one.did == "done"
        (remark,) = remarks(str(root / "gpucache/v1/locks"))
        assert remark.why == "no answer"

    def test_a_pack_under_another_name_is_told_and_not_taken(self, remote, start):
        remote.put("older", SEEDS, served_as="llama")
        said, told = ended(start(SEEDS[:2]))
        assert said["compiled"] == 2
        assert "it is the pack 'older', served as 'llama'" in told


class TestFaults:
    """However the remote or the puller fails, the program goes on within the limits."""

    @pytest.fixture
    def at_the_gate(self, remote: Packs) -> Iterator[SlowRedis]:
        """A remote that gives the statement and half of the kernels, and then nothing."""
        content = remote.packed("llama", LARGE)
        with slow_redis(content, gate=len(content) * 2 // 3) as server:
            yield server

    def test_a_puller_that_is_killed_costs_no_wait(self, at_the_gate, root, start):
        process = start(LARGE, GPUCACHE_REMOTE=at_the_gate.url)
        assert at_the_gate.reached.wait(PATIENCE_S)
        os.kill(puller(root), signal.SIGKILL)
        said, _ = ended(process)
        assert said["compiled"] > 0
        assert said["hits"] + said["compiled"] == len(LARGE)

    def test_a_puller_that_is_stopped_costs_the_stall_limit_once(self, at_the_gate, root, start):
        environ = {"GPUCACHE_REMOTE": at_the_gate.url, "GPUCACHE_STALL_TIMEOUT_S": "2"}
        process = start(LARGE, before=BEAT, **environ)
        assert at_the_gate.reached.wait(PATIENCE_S)
        os.kill(puller(root), signal.SIGSTOP)
        said, told = ended(process)
        assert said["compiled"] > 0
        assert told.count("waited in vain for a pull") == 1

    def test_a_remote_that_stops_in_the_middle_costs_the_stall_limit_once(self, at_the_gate, start):
        environ = {"GPUCACHE_REMOTE": at_the_gate.url, "GPUCACHE_STALL_TIMEOUT_S": "2"}
        said, told = ended(start(LARGE, before=BEAT, **environ))
        assert said["compiled"] > 0
        assert told.count("waited in vain for a pull") == 1

    @pytest.mark.parametrize(
        "name", ["hangs", "drips", "cuts in the middle", "sends 400 MB", "403"]
    )
    def test_whatever_the_server_does_the_program_runs(self, name, start):
        with bad_server(BEHAVIOURS[name]) as server:
            url = f"webdav://127.0.0.1:{server.port}/there"
            environ = {"GPUCACHE_REMOTE": url, "GPUCACHE_STALL_TIMEOUT_S": "2"}
            said, told = ended(start(SEEDS, **environ))
        assert said["compiled"] == len(SEEDS)
        assert said["seconds"] < PATIENCE_S / 2
        assert SECRET not in told

    def test_a_full_disk_costs_the_pull_and_not_the_program(
        self, remote, start, environ, mount, tmp_path, gpucache
    ):
        remote.put("llama", LARGE)
        full = mount(tmp_path / "full", "-t", "tmpfs", "-o", "size=1m", "none")
        more = {"GPUCACHE_DIR": str(full / "root")}
        gpucache("provision", env={**environ, **more})
        (full / "filler").write_bytes(bytes(shutil.disk_usage(full).free))
        said, _ = ended(start(LARGE[:2], **more))
        assert said["compiled"] == 2
        until_pulled(full / "root")
        end_couriers(full / "root")


def puller(root: Path) -> int:
    """The process that pulls, as the file of the pull says once that has taken it over."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for path in pull_files(root):
            with suppress(FileNotFoundError, json.JSONDecodeError):  # it is being written, or over
                said = json.loads(path.read_bytes()[:4096])
                if said["phase"] == "bringing":
                    return said["pid"]
        threading.Event().wait(0.01)
    raise AssertionError("no pull has begun")
