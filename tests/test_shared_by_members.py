"""A root that three users of one group share: real users, real kernels, each command, whatever their umasks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.team import MEMBERS, TEAM, Members, flawed_modes, members_at
from support.processes import PATIENCE_S
from support.ranks import PLUGIN

pytestmark = [pytest.mark.root, pytest.mark.mounts, pytest.mark.usefixtures("triton")]

ADA, BOB, CIM = MEMBERS
UMASKS = (0, 0o022, 0o077)
NOW = ("--yes", "--json")
CLEAN = ("--force", "--yes", "--json")
COMPILE = "import kernels; kernels.main()"


@pytest.fixture(scope="module")
def members() -> Iterator[Members]:
    place = Path(tempfile.mkdtemp(prefix="gpucache-test-", dir="/tmp"))
    place.chmod(0o755)
    with members_at(place) as made:
        yield made
    shutil.rmtree(place)


@pytest.fixture
def team(members, everyones) -> Team:
    return Team(members, everyones)


class Team:
    """The members with a root of theirs, which Ada has provisioned under the umask 077."""

    def __init__(self, members: Members, place: Path) -> None:
        self.members = members
        self.root = place / "root"
        self.root.mkdir()
        os.chown(self.root, ADA, TEAM)
        self.env = {
            **PLUGIN,
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_TRUST_GROUPS": str(TEAM),
            "TRITON_CACHE_DIR": f"{self.root}/triton/0",
        }
        self.done(ADA, 0o077, "provision", "--shared", "group")

    def done(self, uid: int, umask: int, *words: object) -> str:
        """What a command prints that a member runs, and that ends well; all modes are right afterwards."""
        done = self.members.gpucache(uid, umask, *words, env=self.env)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert flawed_modes(self.root) == [], words
        return done.stdout

    def age(self) -> None:
        """Let all entries have been used an hour ago."""
        an_hour_ago = time.time() - 3600
        for manifest in self.root.rglob("__entry__.json"):
            os.utime(manifest, (an_hour_ago, an_hour_ago))

    def compiled(self, uid: int, umask: int, count: int, **env: str) -> dict:
        """What a process of a member says that has asked for so many kernels, without a word of complaint."""
        process = self.members.start(uid, umask, COMPILE, count, env={**self.env, **env})
        out, err = process.communicate("\n", PATIENCE_S)
        assert (process.returncode, err) == (0, ""), err
        assert flawed_modes(self.root) == []
        return json.loads(out.splitlines()[-1])


def test_eight_processes_of_each_of_three_users_compile_twelve_kernels_once(team):
    ranks = []
    for uid in MEMBERS:
        for number in range(8):
            device = f"{team.root}/triton/{number % 2}"
            env = {**team.env, "TRITON_CACHE_DIR": device}
            umask = UMASKS[number % 3]
            ranks.append(team.members.start(uid, umask, COMPILE, 12, env=env))
    for rank in ranks:
        assert rank.stdout.readline() == "ready\n"
    ended = [rank.communicate("\n", PATIENCE_S * 3) for rank in ranks]
    assert [err for _, err in ended if err] == []
    said = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert sum(one["compiled"] for one in said) == 12
    assert all(one["digests"] == said[0]["digests"] for one in said)
    assert len(said[0]["digests"]) == 12
    assert flawed_modes(team.root) == []
    counts = json.loads(team.done(CIM, 0o077, "stats", "--json"))["all"]
    assert counts["misses"] == 12
    assert counts["errors_degraded"] == 0


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_each_command_of_each_member_does_its_work_and_leaves_right_modes(team, umask):
    team.compiled(ADA, umask, 3)
    assert team.compiled(BOB, umask, 3)["compiled"] == 0
    for command in ("ls", "du", "stats", "verify", "doctor", "config", "devices", "provision"):
        team.done(BOB, umask, command)
    assert team.done(CIM, umask, "path", "0").strip() == f"{team.root}/triton/0"
    pack = team.members.environ(BOB, {})["HOME"] + f"/{umask:o}.tar.zst"
    team.done(BOB, umask, "pack", "-o", pack)
    team.age()
    assert json.loads(team.done(CIM, umask, "prune", "--max-entries", "2", *NOW))["entries"] == 1
    assert json.loads(team.done(BOB, umask, "clean", *CLEAN))["entries"] == 2
    assert json.loads(team.done(BOB, umask, "unpack", pack, "--unsigned", "--json"))["made"]
    assert team.compiled(CIM, umask, 3)["compiled"] == 0
    team.age()
    assert json.loads(team.done(BOB, umask, "prune", "--keep-binaries", *NOW))["slimmed"] == 3
    team.done(ADA, umask, "clean", *CLEAN)
    assert team.compiled(CIM, umask, 1)["compiled"] == 1
