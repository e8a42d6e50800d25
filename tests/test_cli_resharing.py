"""`gpucache provision --shared` of a root that is there already, as a person or a script meets it."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from support.cli import on_a_terminal
from support.fuse import same_directory
from support.snippets import DOCS, Snippet, snippets
from support.trees import Cache
from support.users import acting_as

from gpucache.disk.sharing import mark_of

# loaded while root: the interpreter may lie where no other user can read it
assert grp
assert pwd

TEAM = 54400
ADA = 54501

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("as_root")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def cache(tmp_path: Path, gpucache) -> Cache:
    """A private root with an entry and two views."""
    cache = Cache(tmp_path)
    cache.root.chmod(0o700)
    cache.publish()
    cache.link()
    return cache


@pytest.fixture
def provision(gpucache):
    def run(root, *words):
        environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
        return gpucache("provision", "--root", root, *words, env=environ)

    return run


def test_nobody_can_be_asked_so_nothing_is_changed(cache, provision):
    done = provision(cache.root, "--shared", "group", "--group", TEAM)
    assert done.returncode == 2
    assert "say --yes, or --dry-run" in done.stderr
    assert f"comes to be shared with group gid {TEAM}" in done.stderr
    assert mode(cache.root) == 0o700
    assert mark_of(str(cache.root)) is None


def test_who_is_not_let_in_yet_is_asked_for_whatever_the_mark_says(cache, provision):
    """`cp -r` of a group's root copies the mark, and gives the copy the mode and the group of who copies."""
    provision(cache.root, "--shared", "group", "--group", TEAM, "--yes")
    os.chown(cache.root, -1, TEAM + 1)
    cache.root.chmod(0o750)
    done = provision(cache.root, "--shared", "group")
    assert (done.returncode, mode(cache.root)) == (2, 0o750)
    assert "say --yes" in done.stderr
    assert provision(cache.root, "--shared", "group", "--yes").returncode == 0
    assert (mode(cache.root), cache.root.stat().st_gid) == (0o2770, TEAM + 1)


def test_a_dry_run_tells_how_much_and_changes_nothing(cache, provision):
    done = provision(cache.root, "--shared", "group", "--group", TEAM, "--dry-run")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "directories and" in done.stderr
    assert mode(cache.root) == 0o700
    assert not (cache.root / "gpucache" / "v1" / "devices").exists()


def test_said_yes_it_is_changed_marked_and_then_mended_without_a_question(cache, provision):
    done = provision(cache.root, "--shared", "group", "--group", TEAM, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["sharing"] == "group"
    about = said["resharing"]
    assert (about["before"], about["after"], about["gid"]) == ("private", "group", TEAM)
    assert about["done"]["failures"] == []
    assert mode(cache.entry) == 0o2770
    cache.entry.chmod(0o700)
    done = provision(cache.root, "--shared", "group")
    assert done.returncode == 0, done.stderr
    assert "1 directory and 0 files" in done.stderr
    assert mode(cache.entry) == 0o2770
    done = provision(cache.root, "--shared", "group", "--json")
    assert json.loads(done.stdout)["resharing"]["done"] is None


def test_once_a_root_is_changed_members_are_told_what_they_set(cache, provision):
    words = ("--shared", "group", "--group", TEAM)
    done = provision(cache.root, *words, "--yes")
    told = f"each member sets GPUCACHE_DIR={cache.root} GPUCACHE_TRUST_GROUPS={TEAM}"
    assert told in done.stderr
    assert told not in provision(cache.root, *words).stderr


def test_it_says_with_whom_a_root_was_shared_until_now(cache, provision):
    """In words: `is group` told nobody anything."""
    for sharing, before in (
        ("group", "private"),
        ("read", "shared with group"),
        ("private", "shared with everybody"),
    ):
        words = ("--group", TEAM) if sharing == "group" else ()
        done = provision(cache.root, "--shared", sharing, *words, "--yes")
        assert done.returncode == 0, done.stderr
        assert f"note: {cache.root} is {before}" in done.stderr


def test_a_root_in_which_nothing_is_cached_needs_no_question(tmp_path, provision):
    assert provision(tmp_path / "root").returncode == 0
    assert provision(tmp_path / "root", "--shared", "read").returncode == 0
    assert mark_of(str(tmp_path / "root")).sharing == "read"
    for path in (tmp_path / "root" / "CACHEDIR.TAG", *tmp_path.glob("root/gpucache/v1/devices/*")):
        assert mode(path) == 0o644


def test_a_directory_with_other_things_is_shared_after_a_question_only(tmp_path, provision):
    """A home, for one, whose mode would be changed."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "letter").write_text("dear")
    done = provision(home, "--shared", "group", "--group", TEAM)
    assert done.returncode == 2
    assert f"{home}/letter is no cache, and stays as it is" in done.stderr
    assert mode(home) == 0o700
    assert os.listdir(home) == ["letter"]


def test_a_group_of_one_user_is_told(cache, provision):
    done = provision(cache.root, "--shared", "group", "--dry-run")
    assert "that group has nobody in it but uid 0" in done.stderr


def test_a_read_only_root_is_told_with_the_way_out(cache, provision, mount):
    shown = mount(cache.root.parent / "shown", "--bind", str(cache.root))
    subprocess.run(["mount", "-o", "remount,ro,bind", shown], check=True)
    done = provision(shown, "--shared", "group", "--yes")
    assert done.returncode == 1
    assert "could not share" in done.stderr
    assert "Read-only file system" in done.stderr


def test_a_new_root_is_made_for_the_group_that_was_named(tmp_path, provision):
    done = provision(tmp_path / "root", "--shared", "group", "--group", TEAM, "--dry-run")
    assert "is empty, or not there" in done.stderr
    assert not (tmp_path / "root").exists()
    assert provision(tmp_path / "root", "--shared", "group", "--group", TEAM).returncode == 0
    for path in [tmp_path / "root", *tmp_path.glob("root/**/*")]:
        assert path.lstat().st_gid == TEAM


def test_another_users_root_is_changed_with_that_users_rights(everyones, provision):
    home = everyones / "ada"
    home.mkdir()
    os.chown(home, ADA, ADA)
    with acting_as(ADA, TEAM):
        cache = Cache(home)
        cache.root.chmod(0o700)
        cache.publish()
    done = provision(cache.root, "--shared", "group", "--group", TEAM, "--yes")
    assert done.returncode == 0, done.stderr
    for path in [cache.root, *cache.root.rglob("*")]:
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (ADA, TEAM), path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "say --shared as well"),
        (["--group", "4"], "--group goes with --shared group"),
        (["--shared", "read", "--group", "4"], "--group goes with --shared group"),
    ],
)
def test_options_that_need_another_are_refused(tmp_path, provision, words, said):
    done = provision(tmp_path / "root", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_group_that_is_not_there_is_an_error_with_the_way_out(cache, provision):
    done = provision(cache.root, "--shared", "group", "--group", "nosuchgroup", "--yes")
    assert done.returncode == 1
    assert "there is no group 'nosuchgroup'" in done.stderr
    assert "hint: `getent group`" in done.stderr
    assert mode(cache.root) == 0o700


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("chmod-ignore", "its mount keeps no mode 2770 (it stays as it was, without an error"),
        ("chmod-deny", "its mount keeps no mode 2770 (Operation not permitted"),
        ("chgrp-ignore", f"gives nothing to group gid {TEAM} (it stays as it was, without an"),
        ("chgrp-deny", f"gives nothing to group gid {TEAM} (Operation not permitted"),
    ],
)
def test_a_mount_that_decides_on_modes_and_groups_says_so_or_not(
    tmp_path, fuse, provision, cache, option, said
):
    with same_directory(tmp_path, tmp_path.parent / f"{tmp_path.name}-shown", option) as shown:
        done = provision(shown / "root", "--shared", "group", "--group", TEAM, "--yes")
    assert done.returncode == 1
    assert said in done.stderr
    assert (mode(cache.root), cache.root.lstat().st_gid) == (0o700, 0)
    assert mark_of(str(cache.root)) is None


@pytest.mark.fuse
def test_a_mount_that_keeps_no_modes_is_told_before_anything_is_changed(
    tmp_path, object_store, provision
):
    root = tmp_path / "behind" / "root"
    cache = Cache(root.parent)
    cache.publish()
    root.chmod(0o700)
    shown = object_store(tmp_path / "mount", root.parent, chmod="EPERM") / "root"
    done = provision(shown, "--shared", "group", "--yes")
    assert done.returncode == 1
    assert "its mount keeps no mode 2770" in done.stderr
    assert "hint: the mount decides on modes" in done.stderr
    assert mode(root) == 0o700
    assert mark_of(str(root)) is None


def of_the_page(begin: str, root: Path) -> Snippet:
    """The block of `docs/sharing.md` that begins so, with a root and a group that are here."""
    (found,) = (one for one in snippets(DOCS / "sharing.md") if one.text.startswith(begin))
    here = found.text.replace("/scratch/kernels", str(root)).replace("group ml", f"group {TEAM}")
    return found._replace(text=here.replace("GROUPS=ml", f"GROUPS={TEAM}"))


def test_the_lines_of_the_page_make_a_root_that_its_members_believe(tmp_path, gpucache):
    root = tmp_path / "kernels"
    made = of_the_page("gpucache provision --root /scratch/kernels", root).text
    said = of_the_page("export GPUCACHE_DIR=/scratch/kernels", root).text
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "1"}
    assert gpucache(*shlex.split(made)[1:], env=environ).returncode == 0
    environ |= dict(word.split("=") for word in shlex.split(said)[1:])
    done = gpucache("doctor", "--json", env=environ)
    assert done.returncode == 0
    assert json.loads(done.stdout)["root"] == str(root)


def test_the_page_shows_what_a_person_is_asked(cache):
    """But for the numbers, and for what is singular here."""
    (cache.root / "notes").mkdir()
    (cache.root / "notes" / "one").touch()
    manifest = next(cache.root.glob("gpucache/v1/store/*/*/*.ptx"))
    os.link(manifest, cache.root.parent / "backup")
    shown = of_the_page("$ gpucache provision", cache.root).text
    command, *expected = shown.splitlines()
    words = shlex.split(command.removeprefix("$ gpucache"))
    code, seen = on_a_terminal(
        *words, answer=b"n\n", env={"GPUCACHE_FAKE_DEVICES": "1", "COLUMNS": "400"}
    )
    assert code == 1
    for line in expected:
        assert words_of(line) in words_of(seen), seen


def words_of(text: str) -> str:
    """A text with each number, size, group and plural as one."""
    text = re.sub(r"(gid )?\b\d+(\.\d+)? (B|KiB|MiB|GiB)", "N", text)
    text = re.sub(rf"\b(gid )?{TEAM}( \(gid \d+\))?|\b\d+\b", "N", text)
    text = re.sub(r"\b(directories|directory)\b", "directory", text)
    return re.sub(r"\bfiles (are )?", lambda found: "file " + ("is " if found[1] else ""), text)
