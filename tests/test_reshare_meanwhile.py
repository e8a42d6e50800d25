"""A root is shared with a group, and made private again, while real processes launch kernels there."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support.launches import kernel
from support.members import run_as
from support.processes import PATIENCE_S

from gpucache.disk.shared_modes import Wanted
from gpucache.report.unfit import look
from gpucache.store.manifest import entry_path

ADA, BOB, TEAM = 54501, 54502, 54400
LAUNCHES = Path(__file__).with_name("support") / "launching_member.py"

pytestmark = [pytest.mark.root, pytest.mark.mounts, pytest.mark.usefixtures("as_root", "can_mount")]


class Job:
    """A root of Ada's, and programs of Ada's and Bob's that cache there."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.stop = base / "stop"
        self.root.mkdir(mode=0o700)
        os.chown(self.root, ADA, ADA)
        self._base = base

    def run(self, uid: int, *words: object, stage: str = "stage") -> str:
        env = {
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_FAKE_DEVICES": "1",
            "GPUCACHE_TRUST_GROUPS": str(TEAM),
            "TRITON_CACHE_DIR": str(self.root / "triton" / "0"),
        }
        done = run_as(uid, TEAM, [sys.executable, *words], env, self._base / stage)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def provision(self, *words: object) -> str:
        return self.run(ADA, "-m", "gpucache", "provision", *words)

    def launches(self, uid: int, seed: str, most: int = 10_000, stage: str = "stage") -> list[str]:
        said = self.run(uid, LAUNCHES, seed, most, self.stop, stage=stage)
        lines = said.splitlines()
        assert all(line.endswith(" True") for line in lines), said
        return lines

    def wait_for(self, seed: str, number: int) -> None:
        """Wait until the store has the entry of that kernel."""
        path = entry_path(str(self.root), kernel(f"{seed}-{number}")[0])
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def reached(self, seed: str) -> int:
        """How many kernels of a seed the store has."""
        number = 0
        while os.path.exists(entry_path(str(self.root), kernel(f"{seed}-{number}")[0])):
            number += 1
        return number


@pytest.fixture
def job(everyones: Path) -> Job:
    made = Job(everyones)
    made.provision()
    return made


def test_what_ranks_make_meanwhile_is_every_members_afterwards(job):
    seeds = ("a", "b")
    with ThreadPoolExecutor(2) as pool:
        ranks: list[Future[list[str]]] = [
            pool.submit(job.launches, ADA, seed, stage=f"stage-{seed}") for seed in seeds
        ]
        for seed in seeds:
            job.wait_for(seed, 3)
        job.provision("--shared", "group", "--group", TEAM, "--yes")
        begun_after = {seed: job.reached(seed) + 2 for seed in seeds}
        for seed, number in begun_after.items():
            job.wait_for(seed, number + 2)
        job.stop.touch()
        launched = [len(rank.result(PATIENCE_S)) for rank in ranks]
    for seed, number in begun_after.items():
        entry = Path(entry_path(str(job.root), kernel(f"{seed}-{number}")[0]))
        for path in (entry, *entry.iterdir()):
            found = path.lstat()
            assert found.st_gid == TEAM
            assert found.st_mode & 0o7777 == (0o2770 if path.is_dir() else 0o660), path
    job.provision("--shared", "group")
    unfit = look(os.path.realpath(job.root), Wanted("group", TEAM, True), ADA)
    assert (unfit.directories, unfit.files, unfit.outside_files) == (0, 0, 0)
    job.stop.unlink()
    for seed, count in zip(seeds, launched, strict=True):
        assert {line.split()[1] for line in job.launches(BOB, seed, min(count, 20))} == {"hit"}


def test_back_to_private_members_compile_for_themselves_and_the_owner_has_all(job):
    job.provision("--shared", "group", "--group", TEAM)
    job.launches(BOB, "bobs", 3)
    with ThreadPoolExecutor(1) as pool:
        rank = pool.submit(job.launches, BOB, "b", stage="stage-b")
        job.wait_for("b", 3)
        job.provision("--shared", "private", "--yes")
        job.stop.touch()
        rank.result(PATIENCE_S)  # which failed in no launch
    job.stop.unlink()
    assert {line.split()[1] for line in job.launches(BOB, "bobs", 3)} == {"miss"}
    assert {line.split()[1] for line in job.launches(ADA, "bobs", 3)} == {"hit"}
    assert {line.split()[1] for line in job.launches(ADA, "adas", 3)} == {"miss"}
    assert {line.split()[1] for line in job.launches(ADA, "adas", 3)} == {"hit"}
