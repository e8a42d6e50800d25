"""`prune` of many roots by root: each with its owner's rights, whatever lies there, and within its time."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tree
from support.trees import everything_below
from support.users import ADA

from gpucache.upkeep import bounded_children, many_roots, owners_rights
from gpucache.upkeep.bounded_children import ended
from gpucache.upkeep.many_roots import Order, PrunedRoot, prune_roots
from gpucache.upkeep.prune import PrunePolicy
from gpucache.upkeep.straight_way import matches, walked

ALICE, BOB, MALLORY = 41001, 41002, 41003
ALL = PrunePolicy(max_entries=0)


@pytest.fixture
def scratch(everyones: Path) -> Path:
    """Where each user has a directory, as an administrator makes them."""
    made = everyones / "scratch"
    made.mkdir(0o755)
    return made


def give(path: Path, uid: int) -> None:
    """Make a user the owner of a directory and of all in it."""
    for one in (path, *path.rglob("*")):
        os.chown(one, uid, uid, follow_symlinks=False)


Owned = Callable[..., Path]


@pytest.fixture
def owned(scratch: Path, as_root: None) -> Owned:
    """Make a root with three entries below a user's directory."""

    def make(name: str, uid: int, entries: int = 3, at: str = "kernels") -> Path:
        home = scratch / name
        home.mkdir(exist_ok=True)
        tree.make(str(home / at), entries, 1)
        give(home, uid)
        return home / at

    return make


def pruned(*patterns: object, **order: Any) -> dict[str, PrunedRoot]:
    """What came of each root, by the name of the directory that it is in."""
    made = Order(policy=order.pop("policy", ALL), **{"limit_s": 60.0, **order})
    found = prune_roots([str(one) for one in patterns], made, {})
    return {os.path.basename(os.path.dirname(one.root)): one for one in found}


def entries(root: Path) -> int:
    return len(list(root.glob("gpucache/v1/store/*/*")))


# ---- what is done


def test_each_root_of_a_pattern_is_pruned_with_its_owners_rights(owned, scratch):
    roots = {"alice": owned("alice", ALICE), "bob": owned("bob", BOB)}
    (scratch / "nothing").mkdir()
    done = pruned(scratch / "*" / "kernels")
    assert {name: (one.state, one.uid, one.entries) for name, one in done.items()} == {
        "alice": ("pruned", ALICE, 3),
        "bob": ("pruned", BOB, 3),
    }
    for name, root in roots.items():
        assert entries(root) == 0
        assert done[name].physical_bytes > 0
        owners = {path.lstat().st_uid for path in (root, *root.rglob("*"))}
        assert owners == {done[name].uid}, "nothing was made as root"


def test_a_dry_run_changes_nothing(owned, scratch):
    root = owned("alice", ALICE)
    before = everything_below(root)
    done = pruned(scratch / "*" / "kernels", dry_run=True)
    assert (done["alice"].state, done["alice"].entries) == ("planned", 3)
    assert everything_below(root) == before


def test_of_the_roots_of_system_users_only_those_that_are_named_are_pruned(owned, scratch):
    root = owned("daemon", 998)
    done = pruned(scratch / "*" / "kernels")["daemon"]
    assert (done.state, done.uid, done.is_failure) == ("system", 998, False)
    assert entries(root) == 3
    assert pruned(root)["daemon"].state == "pruned"
    assert entries(root) == 0


def test_roots_own_root_and_nobodys_are_left_by_a_pattern(owned, scratch):
    owned("root", 0), owned("nobody", ADA)
    done = pruned(scratch / "*" / "kernels")
    assert {name: one.state for name, one in done.items()} == {"root": "system", "nobody": "system"}


def test_what_is_no_cache_is_passed_over_by_a_pattern_and_an_error_where_it_is_named(
    owned, scratch
):
    owned("alice", ALICE)
    thesis = scratch / "bob" / "kernels"
    thesis.mkdir(parents=True)
    (thesis / "thesis").write_text("mine")
    give(scratch / "bob", BOB)
    done = pruned(scratch / "*" / "kernels")
    assert (done["alice"].state, done["bob"].state) == ("pruned", "no-cache")
    named = pruned(thesis)["bob"]
    assert (named.state, named.is_failure) == ("refused", True)
    assert "is no cache" in named.problem


def test_no_setting_of_the_owners_keeps_what_is_old(owned, scratch, monkeypatch):
    """A user's file is not read; what the root's says of stamps makes the grace 15 minutes at most."""
    root = owned("alice", ALICE)
    (scratch / "alice/.config/gpucache").mkdir(parents=True)
    (scratch / "alice/.config/gpucache/gpucache.toml").write_text("disable = true\n")
    (root / "gpucache.toml").write_text("stamp_s = 90000000\n")
    give(scratch / "alice", ALICE)
    monkeypatch.setenv("HOME", str(scratch / "alice"))
    assert pruned(root)["alice"].entries == 3


def test_a_root_of_a_group_is_pruned_as_a_member(owned, scratch, monkeypatch):
    """What another member has put there is the group's."""
    root = owned("team", ALICE)
    gid = 41100
    for path in (scratch / "team", root, *root.rglob("*")):
        os.chown(path, -1, gid, follow_symlinks=False)
        path.chmod(0o2770 if path.is_dir() else 0o660)
    for path in root.rglob("*"):
        os.chown(path, BOB, gid, follow_symlinks=False)
    mark = root / "gpucache/v1/sharing.json"
    mark.write_text(json.dumps({"format": 1, "sharing": "group"}))
    os.chown(mark, ALICE, gid)
    mark.chmod(0o660)
    assert pruned(root)["team"].entries == 3
    assert entries(root) == 0


# ---- whose rights


class User(tuple):
    pw_name, pw_gid = "alice", ALICE


def rights_of(monkeypatch, mode: int, gid: int, members: list[str]) -> owners_rights.Rights:
    class Group:
        gr_mem = members

    def of_user(uid: int) -> User:
        return User()

    monkeypatch.setattr(owners_rights.pwd, "getpwuid", of_user)
    monkeypatch.setattr(owners_rights.grp, "getgrgid", lambda gid: Group)
    found = os.stat_result([mode, 1, 1, 1, ALICE, gid, 0, 0, 0, 0])
    return owners_rights.rights_of(found)


def test_of_the_owners_groups_only_that_of_a_groups_root_is_taken_over(monkeypatch):
    in_group = owners_rights.Rights(ALICE, 41100)
    alone = owners_rights.Rights(ALICE, ALICE)
    assert rights_of(monkeypatch, 0o42770, 41100, ["alice"]) == in_group
    assert rights_of(monkeypatch, 0o42770, 41100, ["bob"]) == alone
    assert rights_of(monkeypatch, 0o40755, 41100, ["alice"]) == alone


def test_the_rights_are_given_up_for_good(as_root):
    def act() -> object:
        owners_rights.become(owners_rights.Rights(ALICE, ALICE))
        with pytest.raises(PermissionError):
            os.setuid(0)
        with pytest.raises(PermissionError):
            os.setgroups([0])
        return [*os.getresuid(), *os.getresgid(), *os.getgroups(), owners_rights._capabilities()]

    ((_, how),) = ended([act], 60)
    assert how.answer == [ALICE] * 6 + [0]


def test_nothing_below_a_root_is_opened_before_that(owned, strace, tmp_path):
    """Each file below that the traced processes name, they name after `setresuid`."""
    import subprocess
    import sys

    root = owned("alice", ALICE)
    log = tmp_path / "trace"
    words = ["prune", "--root", f"{root.parent.parent}/*/kernels", "--max-entries", "0", "--yes"]
    done = subprocess.run(
        [
            strace,
            "-ff",
            "-o",
            log,
            "-e",
            "trace=%file,%desc,setresuid,execve",
            sys.executable,
            "-m",
            "gpucache",
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [path.read_text().splitlines() for path in tmp_path.glob("trace.*")]
    (child,) = [one for one in lines if any("setresuid" in line for line in one)]
    given_up = next(number for number, line in enumerate(child) if "setresuid" in line)
    below = [
        number for number, line in enumerate(child) if "gpucache/v1" in line and "kernels" in line
    ]
    removing = [number for number, line in enumerate(child) if "unlink" in line]
    assert removing
    assert min(below + removing) > given_up
    assert not any("execve" in line for line in child)
    others = [line for one in lines if one is not child for line in one]
    assert [line for line in others if f"{root}/" in line] == []


# ---- what is refused


def test_a_link_in_the_place_of_a_root_or_on_the_way_is_not_followed(owned, scratch):
    victim = owned("alice", ALICE, at="elsewhere")
    (scratch / "mallory").mkdir()
    (scratch / "mallory/kernels").symlink_to(victim)
    (scratch / "carol").symlink_to(scratch / "alice")
    give(scratch / "mallory", MALLORY)
    os.chown(scratch / "carol", MALLORY, MALLORY, follow_symlinks=False)
    done = pruned(scratch / "*" / "kernels", scratch / "*" / "elsewhere")
    assert {name: one.state for name, one in done.items()} == {
        "alice": "pruned",
        "mallory": "refused",
    }
    assert entries(victim) == 0, "by its own name it is pruned"
    again = owned("alice", ALICE, at="elsewhere2")
    done = pruned(scratch / "mallory/kernels", scratch / "carol/elsewhere2")
    assert {one.state for one in done.values()} == {"refused"}
    assert all("link" in one.problem for one in done.values())
    assert entries(again) == 3


def test_a_link_of_roots_own_on_the_way_is_followed(owned, scratch):
    owned("alice", ALICE)
    (scratch.parent / "data").symlink_to(scratch)
    assert pruned(scratch.parent / "data" / "*" / "kernels")["alice"].state == "pruned"


def test_where_another_user_could_swap_the_root_it_is_refused(owned, scratch):
    root = owned("alice", ALICE)
    os.chown(scratch / "alice", MALLORY, MALLORY)
    done = pruned(scratch / "*" / "kernels")["alice"]
    assert (done.state, entries(root)) == ("refused", 3)
    assert f"belongs to uid {MALLORY}, who could put another directory there" in done.problem
    os.chown(scratch / "alice", ALICE, MALLORY)
    (scratch / "alice").chmod(0o775)
    assert "others may write" in pruned(scratch / "*" / "kernels")["alice"].problem
    (scratch / "alice").chmod(0o1777)
    assert pruned(scratch / "*" / "kernels")["alice"].state == "pruned"


def test_what_a_hostile_root_leads_to_stays(owned, scratch, everyones):
    """Links to what only root may remove, hard links to it, and directories of others."""
    root = owned("mallory", MALLORY)
    treasure = everyones / "treasure"
    treasure.mkdir(0o755)
    (treasure / "gold").write_text("gold")
    before = everything_below(treasure)
    store = root / "gpucache/v1/store"
    shard = next(store.iterdir())
    entry = next(shard.iterdir())
    for file in list(entry.iterdir()):
        if not file.name.startswith("__entry"):
            file.unlink()
            file.symlink_to(treasure / "gold")
            os.chown(file, MALLORY, MALLORY, follow_symlinks=False)
    (store / "zz").symlink_to(treasure)
    (root / "triton/9").symlink_to("/etc")
    (root / "gpucache/v1/quarantine").mkdir(exist_ok=True)
    os.link(treasure / "gold", root / "gpucache/v1/quarantine/gold")
    foreign = root / "gpucache/v1/foreign"
    foreign.mkdir(exist_ok=True)
    from gpucache.disk.node import node_id

    note = foreign / f"{node_id()}.{MALLORY}.{'0' * 32}.json"
    note.write_text(json.dumps({"version": 1, "path": str(treasure)}))
    os.chown(note, MALLORY, MALLORY)
    theirs = root / "triton/0" / ("T" * 52)
    theirs.mkdir(0o755)
    (theirs / "add.json").write_text("{}")
    done = pruned(scratch / "*" / "kernels", policy=PrunePolicy(max_entries=0, max_age_s=0))
    assert done["mallory"].state == "pruned"
    names = {name: facts[:4] for name, facts in everything_below(treasure).items()}
    assert names == {name: facts[:4] for name, facts in before.items()}
    assert (treasure / "gold").read_text() == "gold"
    assert (theirs / "add.json").exists()
    assert os.path.lexists("/etc/passwd")


def test_a_file_a_pipe_and_a_missing_root_are_told(owned, scratch):
    (scratch / "alice").mkdir()
    os.mkfifo(scratch / "alice/kernels")
    done = pruned(scratch / "alice/kernels", scratch / "bob/kernels")
    assert done["alice"].problem == f"{scratch}/alice/kernels: Not a directory"
    assert done["bob"].problem == f"{scratch}/bob: No such file or directory"
    assert pruned(scratch / "*" / "kernels")["*"].state == "no-match"


# ---- what takes too long


def test_a_root_that_hangs_costs_its_own_time_only(owned, scratch, monkeypatch):
    root = owned("alice", ALICE)
    owned("bob", BOB)
    scan = many_roots.scan

    def scan_or_hang(path: str) -> Any:
        if path == str(root):
            signal.pause()
        return scan(path)

    monkeypatch.setattr(many_roots, "scan", scan_or_hang)
    done = pruned(scratch / "*" / "kernels", limit_s=8.0)
    assert (done["alice"].state, done["bob"].state) == ("timed-out", "pruned")
    assert "longer than 8 s" in done["alice"].problem
    assert done["alice"].is_failure


def test_a_file_system_that_does_not_answer_is_given_up(fuse, scratch, owned):
    """Its process has stopped: whoever looks at the root waits for it."""
    import subprocess

    owned("bob", BOB)
    behind, point = scratch.parent / "behind", scratch / "alice"
    behind.mkdir()
    (behind / "kernels").mkdir()
    point.mkdir()
    subprocess.run(["bindfs", "-o", "allow_other", behind, point], check=True)
    (pid,) = [
        int(one)
        for one in os.listdir("/proc")
        if one.isdigit() and str(point).encode() in _command_line(one)
    ]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = pruned(scratch / "*" / "kernels", scratch / "alice/kernels", limit_s=8.0)
        states = {one.state for one in done.values()}
        assert states == {"timed-out", "pruned"}
    finally:
        os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", point], check=True)


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_child_that_is_killed_is_told_and_leaves_whole_entries(owned, scratch, monkeypatch):
    owned("alice", ALICE)
    monkeypatch.setattr(many_roots, "fold", lambda root: os.kill(os.getpid(), signal.SIGKILL))
    done = pruned(scratch / "*" / "kernels")["alice"]
    assert (done.state, done.problem) == ("killed", "its process was killed by SIGKILL")


def test_a_child_has_nothing_of_its_parents_open(tmp_path):
    def act() -> object:
        open_now = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        return sorted(one for one in open_now if not one.startswith(("pipe:", "/proc/")))

    with (tmp_path / "secret").open("w"):
        ((_, how),) = ended([act], 60)
    assert how.answer == ["/dev/null"]


@pytest.mark.parametrize("said", [b"", b"[]", b"nonsense", b'{"answer"', b"[" * 5000])
def test_an_answer_without_sense_is_a_failure(said):
    assert bounded_children._parsed(said).how == "failed"


@pytest.mark.parametrize("answer", [None, [], {}, {"state": "root"}, {"state": ["pruned"]}])
def test_an_answer_of_another_kind_is_a_failure(answer):
    how = bounded_children.Ended("answered", answer)
    assert many_roots._outcome("/r", how, 1).state == "failed"


def test_children_end_when_nobody_waits_for_them_any_more():
    def act() -> object:
        signal.pause()
        return None

    before = _children()
    running = ended([act, lambda: 1], 60)
    number, how = next(running)
    assert (number, how.answer) == (1, 1)
    running.close()
    assert [pid for pid in _children() if pid not in before] == []


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


# ---- ways


def test_a_pattern_matches_directories_and_neither_links_nor_hidden_ones(scratch):
    for name in ("a", "b", ".c"):
        (scratch / name).mkdir()
    (scratch / "file").write_text("")
    (scratch / "link").symlink_to("a")
    top = str(scratch)
    assert matches(top, ["*"]) == [(f"{top}/a", []), (f"{top}/b", [])]
    assert matches(top, [".*"]) == [(f"{top}/.c", [])]
    assert matches("/", [*top.split("/"), "[ab]", "x"]) == [
        (f"{top}/a", ["x"]),
        (f"{top}/b", ["x"]),
    ]
    assert matches(top, ["nothing"]) == []


def test_a_way_is_without_links_and_has_all_that_is_above(scratch):
    (scratch / "a").mkdir()
    (scratch / "b").symlink_to(scratch / "a")
    way = walked(str(scratch / "b"))
    os.close(way.fd)
    assert way.path == str(scratch / "a")
    assert [path for path, _ in way.above] == [
        str(one) for one in list((scratch / "a").parents)[::-1]
    ]
