"""A root that three users of one group share: real users, real kernels, each command, whatever their umasks."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import PATIENCE_S, until
from support.pushers import end_pushers
from support.ranks import ONE_KERNEL, PLUGIN
from support.read_through import couriers, end_couriers
from support.team import MEMBERS, STRANGER, TEAM, Members, flawed_modes, members_at

from gpucache.disk.default_acl import remove_default_acl

pytestmark = [pytest.mark.root, pytest.mark.mounts, pytest.mark.usefixtures("triton")]

ADA, BOB, CIM = MEMBERS
UMASKS = (0, 0o022, 0o077)
NOW = ("--yes", "--json")
CLEAN = ("--force", "--yes", "--json")
LOCKS = "locks/[A-Z2-7]*.lock"
"""The locks of keys."""
EVERY_COMPILE_IS_PUSHED = """
from gpucache.remote import write_behind
write_behind.LEAST_COMPILE_S = 0.0
"""
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

    def __init__(self, members: Members, place: Path, by: int = ADA) -> None:
        self.members = members
        self.root = place / "root"
        self.root.mkdir(exist_ok=True)
        os.chown(self.root, by, TEAM)
        self.env = {
            **PLUGIN,
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_TRUST_GROUPS": str(TEAM),
            "TRITON_CACHE_DIR": f"{self.root}/triton/0",
        }
        self.done(by, 0o077, "provision", "--shared", "group")

    def done(self, uid: int, umask: int, *words: object) -> str:
        """What a command prints that a member runs, and that ends well; all modes are right afterwards."""
        done = self.members.gpucache(uid, umask, *words, env=self.env)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert flawed_modes(self.root) == [], words
        return done.stdout

    def without_acls(self) -> None:
        """Take the default ACLs away, as where the mount has none."""
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir():
                fd = os.open(path, os.O_RDONLY)
                remove_default_acl(fd)
                os.close(fd)

    def age(self) -> None:
        """Let all entries have been used an hour ago."""
        an_hour_ago = time.time() - 3600
        for manifest in self.root.rglob("__entry__.json"):
            os.utime(manifest, (an_hour_ago, an_hour_ago))

    def compiled(
        self, uid: int, umask: int, count: int, arch: int = 90, **env: str | None
    ) -> dict[str, Any]:
        """What a process of a member says that has asked for so many kernels, without a word of complaint."""
        wanted = {name: value for name, value in {**self.env, **env}.items() if value is not None}
        code = EVERY_COMPILE_IS_PUSHED + COMPILE
        process = self.members.start(uid, umask, code, count, arch, env=wanted)
        out, err = process.communicate("\n", PATIENCE_S)
        assert (process.returncode, err) == (0, ""), err
        assert flawed_modes(self.root) == []
        return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("has_acls", [True, False], ids=["ACLs", "no ACLs"])
def test_eight_processes_of_each_of_three_users_compile_twelve_kernels_once(team, has_acls):
    """Without default ACLs, as on NFS, the umasks of 000, 022 and 077 count for each file and directory."""
    if not has_acls:
        team.without_acls()
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
    for command in ("ls", "du", "stats", "verify", "config", "devices", "provision", "caches"):
        team.done(BOB, umask, command)
    findings = json.loads(team.done(BOB, umask, "doctor", "--json"))["findings"]
    assert [one["code"] for one in findings] == ["fake-devices"]
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


class TestWhatAMemberHasLeft:
    """Ada's process was killed, and nobody waits for her: her next one may never come."""

    @pytest.fixture
    def killed(self, team) -> Team:
        """A compile of Ada's was killed: its lock's file and what it had staged are there."""
        env = {**team.env, "KERNELS_AT": "make_ptx"}
        process = team.members.start(ADA, 0o077, COMPILE, 1, env=env)
        process.stdin.write("\n")
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines == ["ready\n", "at make_ptx\n"]
        assert flawed_modes(team.root) == []
        process.end()
        return team

    def test_her_lock_and_what_she_had_staged_keep_nobody(self, killed):
        own = killed.root / "gpucache" / "v1"
        (lock,) = own.glob(LOCKS)
        (left,) = own.glob("tmp/gpucache-staging-*")
        assert {lock.stat().st_uid, left.stat().st_uid} == {ADA}
        assert killed.compiled(BOB, 0o022, 1)["compiled"] == 1
        assert list(own.glob(LOCKS)) == []
        assert not left.exists()
        assert list(own.glob("tmp/*")) == []

    def test_prune_of_another_member_takes_both_away(self, killed):
        said = json.loads(killed.done(CIM, 0o077, "prune", *NOW))
        assert said["strays"] == 2
        own = killed.root / "gpucache" / "v1"
        assert [*own.glob(LOCKS), *own.glob("tmp/*")] == []

    def test_a_removal_that_was_killed_is_completed_and_the_kernel_compiled_again(self, team):
        team.compiled(ADA, 0o077, 1)
        for manifest in team.root.rglob("__entry__.json"):
            manifest.rename(f"{manifest}.removed")
        assert team.compiled(BOB, 0o077, 1)["compiled"] == 1
        assert team.compiled(CIM, 0o077, 1)["compiled"] == 0

    def test_a_removal_that_was_killed_is_completed_by_the_prune_of_another(self, team):
        team.compiled(ADA, 0o077, 1)
        for manifest in team.root.rglob("__entry__.json"):
            manifest.rename(f"{manifest}.removed")
            an_hour_ago = time.time() - 7200
            os.utime(manifest.parent, (an_hour_ago, an_hour_ago))
        assert json.loads(team.done(CIM, 0o022, "prune", *NOW))["strays"] == 2
        assert list(team.root.rglob("*.removed")) == []
        assert list(team.root.rglob("*.cubin")) == []

    def test_her_counters_are_folded_by_another(self, killed):
        (counters,) = (killed.root / "gpucache" / "v1" / "stats").glob("*.counts")
        assert counters.stat().st_uid == ADA
        assert json.loads(killed.done(CIM, 0o077, "stats", "--json"))["all"]["misses"] == 1
        assert not counters.exists()
        assert json.loads(killed.done(BOB, 0o077, "stats", "--json"))["all"]["misses"] == 1

    def test_what_had_not_its_mode_yet_is_removed_an_hour_later(self, team):
        """Where no default ACL gives the mode at once, between the two calls."""
        left = [
            team.root / "gpucache/v1/tmp/gpucache-new-0000.x",
            team.root / "gpucache/v1/tmp/publish-AB.7.00000000",
            team.root / "triton/0/tmp.gpucache-7.0000000000000000",
        ]
        for path in left:
            path.mkdir()
            os.chown(path, ADA, TEAM)
            path.chmod(0o2700)
        team.members.gpucache(BOB, 0o022, "prune", *NOW, env=team.env)
        assert all(path.exists() for path in left)
        for path in left:
            os.utime(path, (time.time() - 7200, time.time() - 7200))
        team.done(BOB, 0o022, "prune", *NOW)
        assert not any(path.exists() for path in left)


class TestWhatBelongsToAnother:
    def test_an_entry_is_evicted_where_a_member_needs_the_room(self, team):
        team.compiled(ADA, 0o077, 4)
        team.age()
        before = {path.parent.name for path in team.root.glob("gpucache/v1/store/*/*/*.cubin")}
        team.compiled(BOB, 0o022, 1, arch=80, GPUCACHE_MAX_SIZE="100KB")
        left = {path.parent.name for path in team.root.glob("gpucache/v1/store/*/*/*.cubin")}
        assert len(before) == 4
        assert not before <= left

    def test_a_damaged_entry_is_replaced_by_a_launch_of_another_member(self, team):
        team.compiled(ADA, 0o077, 1)
        (cubin,) = team.root.glob("gpucache/v1/store/*/*/*.cubin")
        with open(cubin, "r+b") as file:
            file.truncate(100)
        assert team.compiled(BOB, 0o022, 1)["compiled"] == 1
        assert team.compiled(ADA, 0o022, 1)["compiled"] == 0
        assert os.listdir(team.root / "gpucache" / "v1" / "quarantine") != []

    def test_a_damaged_entry_is_repaired_by_verify_of_another_member(self, team):
        team.compiled(ADA, 0o077, 2)
        view = next(team.root.glob("triton/0/*/*.cubin"))
        view.unlink()
        view.write_bytes(b"damaged")
        os.chown(view, ADA, TEAM)
        view.chmod(0o660)
        done = team.members.gpucache(CIM, 0o077, "verify", "--repair", env=team.env)
        assert "made again" in done.stdout or "linked to" in done.stdout, done
        team.done(CIM, 0o077, "verify")
        assert flawed_modes(team.root) == []
        assert team.compiled(BOB, 0o077, 2)["compiled"] == 0

    def test_a_use_is_stamped_on_anothers_entry(self, team):
        team.compiled(ADA, 0o077, 1)
        team.age()
        team.compiled(BOB, 0o077, 1)
        (manifest,) = team.root.glob("gpucache/v1/store/*/*/__entry__.json")
        assert manifest.stat().st_uid == ADA
        assert time.time() - manifest.stat().st_mtime < 1800


class TestFromOutside:
    def test_what_stock_triton_has_left_in_a_home_is_copied_into_the_root(self, team):
        home = team.members.environ(BOB, {})["HOME"]
        stock = {"TRITON_CACHE_DIR": f"{home}/cache", "TRITON_CACHE_MANAGER": None}
        assert team.compiled(BOB, 0o022, 2, **stock)["compiled"] == 2
        files = {path: path.stat() for path in Path(home, "cache").rglob("*") if path.is_file()}
        assert files
        found = team.compiled(BOB, 0o022, 2, TRITON_CACHE_DIR=f"{home}/cache")
        assert found["compiled"] == 0
        for path, before in files.items():
            assert (path.stat().st_mode, path.stat().st_gid) == (before.st_mode, before.st_gid)
        assert team.compiled(CIM, 0o077, 2)["compiled"] == 0

    def test_views_in_a_home_are_that_users_own(self, team):
        home = team.members.environ(BOB, {})["HOME"]
        directory = {"TRITON_CACHE_DIR": f"{home}/own-{os.path.basename(team.root.parent)}"}
        team.compiled(ADA, 0o077, 1)
        assert team.compiled(BOB, 0o000, 1, **directory)["compiled"] == 0
        (view,) = Path(directory["TRITON_CACHE_DIR"]).iterdir()
        assert stat.S_IMODE(view.stat().st_mode) == 0o700
        team.age()
        said = json.loads(team.done(CIM, 0o077, "prune", "--max-entries", "0", *NOW))
        assert said["entries"] == 1
        assert team.compiled(BOB, 0o000, 1, **directory)["compiled"] == 0

    def test_what_stock_triton_leaves_in_the_root_is_a_hit_for_all_members(self, team):
        """Without the plug-in: the default ACL of the root's directories lets others use what it writes."""
        assert team.compiled(BOB, 0o077, 2, TRITON_CACHE_MANAGER=None)["compiled"] == 2
        assert team.compiled(CIM, 0o077, 2, TRITON_CACHE_MANAGER=None)["compiled"] == 0
        assert team.compiled(ADA, 0o077, 2)["compiled"] == 0

    def test_what_stock_triton_has_closed_to_others_keeps_them_from_nothing(self, team):
        """Where the mount has no ACLs, and the umask is 077: the others use the store's own entries, and are told."""
        team.without_acls()
        stock = {**team.env}
        del stock["TRITON_CACHE_MANAGER"]
        process = team.members.start(BOB, 0o077, COMPILE, 2, env=stock)
        out, _ = process.communicate("\n", PATIENCE_S)
        assert json.loads(out.splitlines()[-1])["compiled"] == 2
        for uid, compiled in ((CIM, 2), (ADA, 0), (BOB, 0)):
            process = team.members.start(uid, 0o077, COMPILE, 2, env=team.env)
            out, err = process.communicate("\n", PATIENCE_S)
            assert json.loads(out.splitlines()[-1])["compiled"] == compiled
            said = "kernels are used from the store itself"
            assert [line for line in err.splitlines() if said not in line] == []


class TestRoot:
    def test_what_root_does_there_keeps_no_member_from_anything(self, team):
        team.compiled(ADA, 0o077, 2)
        assert team.compiled(0, 0o077, 3)["compiled"] == 1
        for command in ("provision", "verify", "stats", "doctor"):
            team.done(0, 0o077, command)
        team.age()
        team.done(0, 0o077, "prune", "--max-entries", "2", *NOW)
        team.compiled(BOB, 0o077, 4)
        team.done(CIM, 0o077, "clean", *CLEAN)
        team.compiled(CIM, 0o077, 1)

    def test_a_root_that_root_has_provisioned_for_a_group(self, members, everyones):
        root = everyones / "root"
        root.mkdir()
        os.chown(root, 0, TEAM)
        team = Team(members, everyones, by=0)
        assert team.compiled(ADA, 0o077, 1)["compiled"] == 1
        assert team.compiled(BOB, 0o077, 1)["compiled"] == 0


class TestRemotes:
    @pytest.fixture
    def ended(self, team) -> Iterator[None]:
        yield
        end_pushers(team.root)
        end_couriers(team.root)

    @pytest.mark.usefixtures("ended")
    def test_each_member_asks_a_remote_and_pushes_by_himself(self, team, everyones):
        """The courier and the pusher are one for each user; what they leave in the root is all members'."""
        for uid in (ADA, BOB):
            remote = everyones / f"remote-{uid}"
            remote.mkdir(0o700)
            os.chown(remote, uid, uid)
            url = {"GPUCACHE_REMOTE": f"file://{remote}?trust=owner&mode=write"}
            assert team.compiled(uid, 0o077, 2, **url)["compiled"] == 2
            until(lambda at=remote: kept(at) == 2 and pushed(team.root), "entries wait")
            assert {path.stat().st_uid for path in remote.rglob("*")} == {uid}
            team.done(CIM, 0o022, "clean", *CLEAN)
            assert team.compiled(uid, 0o022, 2, **url)["compiled"] == 0
            assert couriers(team.root) != []
            team.done(CIM, 0o077, "clean", *CLEAN)
            team.done(CIM, 0o077, "doctor")

    def test_a_pack_that_one_member_has_pushed_another_pulls(self, team, everyones):
        team.compiled(ADA, 0o077, 1)
        home = team.members.environ(BOB, {})["HOME"]
        remote = everyones / "remote"
        remote.mkdir()
        os.chown(remote, BOB, TEAM)
        url = f"file://{remote}?trust=owner"
        team.done(BOB, 0o022, "pack", "-o", f"{home}/kernels.tar.zst")
        team.done(BOB, 0o022, "push", "--remote", url, f"{home}/kernels.tar.zst")
        team.done(ADA, 0o077, "clean", *CLEAN)
        team.env["GPUCACHE_TRUST_UIDS"] = str(BOB)
        assert json.loads(team.done(CIM, 0o077, "pull", "--remote", url, "kernels", "--json"))[
            "made"
        ]
        assert team.compiled(ADA, 0o077, 1)["compiled"] == 0


def kept(remote: Path) -> int:
    """How many entries a remote has."""
    return sum(path.is_file() for path in remote.glob("v1/*/*/*"))


def pushed(root: Path) -> bool:
    """Whether nothing waits for a pusher."""
    return not [path for path in root.glob("gpucache/v1/outbox/*/*") if path.is_file()]


def test_what_a_run_of_one_member_has_recorded_is_compiled_ahead_by_another(team):
    command = ("run", "--device", "0", "--warm", "auto", "--", sys.executable, ONE_KERNEL)
    team.done(ADA, 0o077, *command)
    (recording,) = team.root.glob("gpucache/v1/recipes/*.recipes")
    team.done(CIM, 0o077, "clean", *CLEAN)
    said = team.done(BOB, 0o077, "warm", recording, "--main", ONE_KERNEL, "--json")
    assert json.loads(said)["counts"] == {"made": 1}
    said = team.done(CIM, 0o022, *command)
    assert json.loads(said.splitlines()[-1])["hit"] is True


def test_who_is_no_member_of_the_group_cannot_share_with_it_and_is_told(members, everyones):
    root = everyones / "strangers"
    root.mkdir()
    os.chown(root, STRANGER, TEAM)
    words = ("provision", "--root", root, "--shared", "group")
    done = members.gpucache(STRANGER, 0o022, *words, env={}, gid=0)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"uid {STRANGER} is not in the group {TEAM}" in done.stderr
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert os.listdir(root) == []


def test_a_root_that_is_named_by_a_link_is_as_shared(team, everyones):
    link = everyones / "link"
    link.symlink_to(team.root)
    assert team.compiled(ADA, 0o077, 1)["compiled"] == 1
    assert team.compiled(BOB, 0o077, 1, GPUCACHE_DIR=str(link))["compiled"] == 0
    through = {"GPUCACHE_DIR": str(link), "TRITON_CACHE_DIR": f"{link}/triton/1"}
    assert team.compiled(CIM, 0o077, 1, **through)["compiled"] == 0


def test_a_new_root_says_what_its_members_set(members, everyones):
    place = everyones / "place"
    place.mkdir()
    os.chown(place, ADA, TEAM)
    place.chmod(0o2770)
    words = ("provision", "--root", place / "root", "--shared", "group")
    done = members.gpucache(ADA, 0o077, *words, env={})
    assert done.stderr.endswith(
        f"note: {place}/root is shared with group gid {TEAM}, so that each member can run code as each other\n"
        f"note: each member sets GPUCACHE_DIR={place}/root GPUCACHE_TRUST_GROUPS={TEAM}\n"
    )
    assert flawed_modes(place / "root") == []


ELSEWHERE = """
import gpucache.disk.lock_place as lock_place
lock_place.is_local = lambda path: False
"""


def test_on_a_network_mount_the_members_of_a_node_share_their_locks(team):
    """As where the root is on NFS: the locks are in a directory of the group's in /dev/shm."""
    ranks = [
        team.members.start(uid, umask, ELSEWHERE + COMPILE, 4, env=team.env)
        for uid in MEMBERS
        for umask in UMASKS
    ]
    for rank in ranks:
        assert rank.stdout.readline() == "ready\n"
    ended = [rank.communicate("\n", PATIENCE_S * 3) for rank in ranks]
    assert [err for _, err in ended if err] == []
    assert sum(json.loads(out.splitlines()[-1])["compiled"] for out, _ in ended) == 4
    (place,) = team.members.shared_memory.glob(f"gpucache-g{TEAM}-*")
    assert stat.S_IMODE(place.stat().st_mode) == 0o2770
    assert place.stat().st_gid == TEAM
    assert flawed_modes(team.root) == []
