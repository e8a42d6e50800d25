"""A change of a root's sharing that is killed before each call by which it changes the disk, and then done again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.trees import Cache

from gpucache.disk.default_acl import has_any_default_acl
from gpucache.disk.sharing import mark_of
from gpucache.layout import paths
from gpucache.store.lookup import sound
from gpucache.upkeep.reshare import plan
from gpucache.upkeep.reshare_act import apply

TEAM = 54400
CHANGE = (
    SCRIPT
    + """
from gpucache.upkeep.reshare import plan
from gpucache.upkeep.reshare_act import apply
planned = plan(sys.argv[1] + "/root", sys.argv[2], "54400" if sys.argv[2] == "group" else None)
mark("begin")
apply(planned)
mark("end")
"""
)

pytestmark = [pytest.mark.root, pytest.mark.kills, pytest.mark.usefixtures("as_root")]


def made(home: Path) -> Cache:
    """A root with an entry, a view, and one file that has a name outside the root."""
    cache = Cache(home)
    cache.publish({"add.json": b"{}"})
    cache.link()
    os.link(cache.entry / "add.json", home / "outside")
    (home / "outside").chmod(0o600)
    return cache


def is_shared_whole(root: Path) -> bool:
    """Whether each member of the team can use everything."""
    for path in [root, *root.rglob("*")]:
        found = path.lstat()
        mode = 0o2770 if path.is_dir() else 0o660
        is_lock = path.name.startswith("sharing.lock")
        if not is_lock and (found.st_gid, stat.S_IMODE(found.st_mode)) != (TEAM, mode):
            return False
    return True


def entry_of(root: Path) -> Path:
    (entry,) = root.glob("gpucache/v1/store/*/*")
    return entry


class TestKilled:
    def test_on_the_way_to_a_group_nobody_believes_a_root_that_is_not_whole(self, every_call):
        def start(home: Path) -> list[object]:
            made(home)
            return ["group"]

        def check(home: Path, line: str) -> None:
            root = home / "root"
            assert (home / "outside").read_bytes() == b"{}"
            assert stat.S_IMODE((home / "outside").stat().st_mode) == 0o600, line
            assert sound(str(entry_of(root)), True, 0.0) is not None, line
            if mark_of(str(root)) is not None:
                assert is_shared_whole(root), line
            done = apply(plan(str(root), "group", str(TEAM)))
            assert (done.failures, done.uncopied) == ((), 0)
            for left in Path(paths.ours(str(root), "tmp")).glob("publish-*"):
                left.unlink()  # what was killed stays for an hour
            assert is_shared_whole(root), line
            assert mark_of(str(root)).sharing == "group"
            assert stat.S_IMODE((home / "outside").stat().st_mode) == 0o600, line

        names = every_call.killed_everywhere(CHANGE, start, check, least=30)
        assert {"fchmod", "fchown", "fsetxattr"} <= names
        assert names & {"renameat", "renameat2"}

    def test_on_the_way_back_no_mark_is_left_from_the_first_change_on(self, every_call):
        def start(home: Path) -> list[object]:
            made(home)
            apply(plan(str(home / "root"), "group", str(TEAM)))
            return ["private"]

        def check(home: Path, line: str) -> None:
            root = home / "root"
            if mark_of(str(root)) is not None:
                assert is_shared_whole(root), line
            planned = plan(str(root), "private")
            if planned.changes_anything:  # else the command does nothing
                apply(planned)
            assert mark_of(str(root)) is None
            for path in [root, *root.rglob("*")]:
                assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, (path, line)
                assert not has_any_default_acl(path), (path, line)

        names = every_call.killed_everywhere(CHANGE, start, check, least=20)
        assert {"fchmod", "fremovexattr"} <= names
        assert names & {"unlink", "unlinkat"}
