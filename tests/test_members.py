"""TorchInductor's and other JITs' caches in the root of a group: everybody's by a default ACL, or each member's own."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.members import run_as
from support.processes import PATIENCE_S

from gpucache.archive.inductor import collect_unit, units_in
from gpucache.disk.default_acl import has_default_acl
from gpucache.disk.members import base_of_others, make_base
from gpucache.layout import paths

ADA, BOB, TEAM = 54501, 54502, 54400
GRAPH = f"fxgraph/{'a' * 2}/{'a' * 51}/{'b' * 51}"
PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
x = torch.ones(64)
compiled = torch.compile(lambda x: x.sin() + 1)(x)
assert torch.allclose(compiled, x.sin() + 1)
said = {name: counters["inductor"][name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss")}
sys.stdout.write(json.dumps(said))
"""
HIT = {"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 0}
MISS = {"fxgraph_cache_hit": 0, "fxgraph_cache_miss": 1}

pytestmark = [pytest.mark.root, pytest.mark.mounts, pytest.mark.usefixtures("as_root", "can_mount")]

Member = Callable[..., str]


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


class Team:
    """A root of a group, and its members."""

    def __init__(self, root: Path, stage: Path) -> None:
        self.root = root
        self._stage = stage
        self.said = ""

    def says(
        self, uid: int, *words: object, umask: int = 0o022, timeout: float = PATIENCE_S
    ) -> str:
        """Run gpucache as a member; what it prints."""
        env = {
            "GPUCACHE_DIR": str(self.root),
            "GPUCACHE_FAKE_DEVICES": "1",
            "GPUCACHE_TRUST_GROUPS": str(TEAM),
            "HOME": "/nowhere",
            "USER": f"user{uid}",
        }
        command = [sys.executable, "-m", "gpucache", *words]
        done = run_as(uid, TEAM, command, env, self._stage, umask, timeout)
        self.said = done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    def compiles(self, uid: int, umask: int = 0o022) -> dict[str, int]:
        """Run torch.compile as a member; whether torch's cache of graphs hit."""
        words = ("run", "--", sys.executable, "-c", PROGRAM)
        said = self.says(uid, *words, umask=umask, timeout=2 * PATIENCE_S)
        return json.loads(said)


def team_at(root: Path, everyones: Path) -> Team:
    root.mkdir()
    os.chown(root, ADA, TEAM)
    root.chmod(0o2770)
    team = Team(root, everyones / "stage")
    team.says(ADA, "provision", "--shared", "group")
    return team


@pytest.fixture
def with_acls(everyones: Path) -> Team:
    return team_at(everyones / "root", everyones)


@pytest.fixture
def without_acls(everyones: Path, mount) -> Team:
    disk = mount(everyones / "disk", "-t", "ramfs", "none")
    disk.chmod(0o755)
    return team_at(disk / "root", everyones)


class TestWithACLs:
    def test_the_root_is_where_torch_caches(self, with_acls):
        assert has_default_acl(with_acls.root)
        assert base_of_others(str(with_acls.root)) == str(with_acls.root)
        said = json.loads(with_acls.says(BOB, "env", 0, "--format", "json"))["variables"]
        assert said["TORCHINDUCTOR_CACHE_DIR"] == str(with_acls.root)
        assert not Path(paths.members_directory(str(with_acls.root))).exists()

    def test_directories_of_jits_are_everybodys_under_any_umask(self, with_acls):
        words = ("env", 0, "--caches", "numba", "--format", "json")
        made = json.loads(with_acls.says(ADA, *words, umask=0o077))["variables"]["NUMBA_CACHE_DIR"]
        assert json.loads(with_acls.says(BOB, *words))["variables"]["NUMBA_CACHE_DIR"] == made
        for step in (Path(made), *Path(made).parents):
            if step == with_acls.root:
                break
            assert (mode(step), step.lstat().st_gid) == (0o2770, TEAM)
            assert has_default_acl(step)

    @pytest.mark.torch
    def test_the_second_members_torch_hits_what_the_first_ones_has_compiled(self, with_acls):
        assert with_acls.compiles(ADA, umask=0o077) == MISS
        assert with_acls.compiles(BOB, umask=0o077) == HIT
        for path in with_acls.root.glob("fxgraph/**/*"):
            assert path.lstat().st_gid == TEAM
            assert mode(path) == (0o2770 if path.is_dir() else 0o660), path


class TestWithoutACLs:
    def test_each_member_has_an_own_directory_told_once(self, without_acls):
        team = without_acls
        own = Path(paths.member_directory(str(team.root), BOB))
        said = json.loads(team.says(BOB, "run", "--", sys.executable, "-c", ENVIRON))
        assert "its mount has no ACLs" in team.said
        assert str(own) in team.said
        assert said["TORCHINDUCTOR_CACHE_DIR"] == str(own)
        assert said["GPUCACHE_DIR"] == str(team.root)
        assert (mode(own), own.lstat().st_uid) == (0o700, BOB)
        assert (mode(own.parent), own.parent.lstat().st_gid) == (0o2770, TEAM)
        assert (own / "triton").samefile(team.root / "triton")
        said = json.loads(team.says(ADA, "env", 0, "--caches", "numba", "--format", "json"))[
            "variables"
        ]
        adas = paths.member_directory(str(team.root), ADA)
        assert said["TORCHINDUCTOR_CACHE_DIR"] == adas
        assert said["NUMBA_CACHE_DIR"].startswith(f"{adas}/jit/numba")
        assert said["TRITON_CACHE_DIR"] == str(team.root / "triton" / "0")

    def test_du_prune_and_clean_know_what_lies_there(self, without_acls):
        team = without_acls
        team.says(BOB, "provision")
        team.says(ADA, "provision")
        long_ago = time.time() - 86400
        for uid in (ADA, BOB):
            file = Path(paths.member_directory(str(team.root), uid)) / GRAPH
            file.parent.mkdir(parents=True)
            file.write_text("x" * uid)
            os.utime(file, (long_ago, long_ago))
            for path in (file, *file.parents):
                if path.name == str(uid):
                    break
                os.chown(path, uid, TEAM)
        rows = json.loads(team.says(BOB, "du", "--json"))["rows"]
        assert "unreadable" not in team.said
        bytes_by_name = {row["name"]: row["logical_bytes"] for row in rows}
        assert bytes_by_name[f"members/{BOB}"] >= BOB
        assert bytes_by_name.get(f"members/{ADA}", 0) == 0, "which is nobody else's to read"
        pruned = json.loads(
            team.says(BOB, "prune", "--inductor", "--max-age", "1h", "--yes", "--json")
        )
        assert pruned["removed"]["logical_bytes"] == BOB
        assert not (Path(paths.member_directory(str(team.root), BOB)) / GRAPH).exists()
        cleaned = json.loads(team.says(ADA, "clean", "--yes", "--json"))
        assert cleaned["left"] == []
        assert not (Path(paths.member_directory(str(team.root), ADA)) / GRAPH).exists()

    def test_doctor_tells_nothing_of_what_run_has_set(self, without_acls):
        words = ("run", "--", sys.executable, "-m", "gpucache", "doctor", "--json")
        found = json.loads(without_acls.says(BOB, *words))["findings"]
        codes = {finding["code"] for finding in found}
        assert codes <= {"no-acls", "fake-devices", "tmpfs"}, found

    def test_a_change_leaves_a_place_for_members_whoever_comes_first(self, without_acls):
        members = Path(paths.members_directory(str(without_acls.root)))
        without_acls.says(ADA, "provision", "--shared", "private", "--yes")
        for path in members.iterdir():
            (path / "triton").unlink()
            path.rmdir()
        members.rmdir()
        without_acls.says(ADA, "provision", "--shared", "group")
        assert mode(members) == 0o2770

    def test_a_pack_has_what_is_this_users_by_the_names_that_torch_knows(self, without_acls):
        root = os.path.realpath(without_acls.root)
        base = make_base(root)
        assert base == paths.member_directory(root, 0)
        for where in (base, root, paths.member_directory(root, BOB)):
            code = Path(where, f"ab/cab{'c' * 40}.py")
            code.parent.mkdir(parents=True)
            code.write_text(f"x = {len(where)}\n")
        (unit,) = units_in(root)
        assert unit.path.startswith(base)
        assert list(collect_unit(root, unit, None).paths) == [f"ab/cab{'c' * 40}.py"]

    @pytest.mark.torch
    def test_nobodys_torch_fails_on_what_another_members_has_written(self, without_acls):
        assert without_acls.compiles(ADA, umask=0o077) == MISS
        assert without_acls.compiles(BOB) == MISS


ENVIRON = "import json, os, sys; sys.stdout.write(json.dumps(dict(os.environ)))"


def test_a_device_directory_that_torch_names_in_its_own_root_is_that_of_the_root():
    named = f"/r/members/{BOB}/triton/0"
    assert paths.in_root(named, "/r") == "/r/triton/0"
    assert paths.in_root("/r/triton/0", "/r") == "/r/triton/0"
    assert paths.in_root("/elsewhere/triton/0", "/r") == "/elsewhere/triton/0"
    assert paths.in_root(f"/r/members/{BOB}/jit/x", "/r") == f"/r/members/{BOB}/jit/x"


def test_a_private_root_asks_for_no_acl(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getxattr", pytest.fail)
    assert base_of_others(str(tmp_path)) == str(tmp_path)
    assert base_of_others(str(tmp_path / "missing")) == str(tmp_path / "missing")


def test_a_directory_of_a_groups_mode_without_a_mark_is_no_groups_root(tmp_path):
    tmp_path.chmod(0o2770)
    assert base_of_others(str(tmp_path)) == str(tmp_path)
